"""The runners of a worker: how many there are, who replaces whom, and how soon after a death.

Post     a place for one shared runner with a share of every queue's slots (posts.py). A post has at most one runner that is dealt to, and perhaps the one
         before it, which finishes what it runs on the same share. Posts come and go with the slots there are; the runner of one that goes is retired.
Replace  (too many tasks, too much memory, new code) the next runner is started first; when it is ready the old one retires: what it has not started comes
         back, what runs finishes, then it stops. One that cannot load the app is given up and the old one stays.
Restart  a runner that died is replaced at once, but no more than once a second and post; one that dies again and again before it has ended anything, or
         cannot load the app, waits longer each time, up to RESTART_MOST_S.
Lone     runners for one delivery at a time, hired when something waits for them, dismissed when they have been idle for a while.
"""

import logging
from time import monotonic
from typing import Protocol

from beltline.app import App
from beltline.worker.children import Child, ProcessChild, Stage, ThreadChild, how_it_ended
from beltline.worker.config import WorkerConfig
from beltline.worker.frames import Broken, Hello, Ready, Setup, ToSupervisor
from beltline.worker.intake import Intake
from beltline.worker.posts import Post, spread

log = logging.getLogger("beltline.worker")

RESTART_LEAST_S = 1.0
RESTART_MOST_S = 30.0
LONE_IDLE_S = 30.0
FIRST_DEATHS = 3  # a worker whose runners die so often before any was ready gives up
STOP_S = 12.0  # for closing the resources and leaving; then it is killed
LATE_S = 1.0  # between two requests to return what has not started


class Boss(Protocol):
    """Who is told. `on_hello` answers whether the runner may begin; if not, `lay_out` lets it begin later."""

    def on_hello(self, child: Child, hello: Hello) -> bool: ...

    def on_ready(self, child: Child) -> None: ...

    def on_share(self, child: Child) -> None: ...

    def on_work(self, child: Child, frame: ToSupervisor) -> None: ...

    def on_retire(self, child: Child) -> None: ...

    def on_death(self, child: Child, how: str) -> None: ...

    def on_fatal(self, text: str) -> None: ...


class Crew:
    def __init__(self, config: WorkerConfig, worker: str, boss: Boss, *, app: App | None = None, explicit_url: str = "") -> None:
        self.posts: list[Post] = []
        self.lone: list[Child] = []
        self.children: list[Child] = []
        self.open = True
        self.ever_ready = False
        self.deaths = 0
        self._config = config
        self._worker = worker
        self._boss = boss
        self._app = app
        self._url = explicit_url
        self._laid_out = False
        self._wanted: dict[Intake, int] = {}
        self._number = 0
        self._opened = 0
        self._lone_pauses: list[float] = []

    # ---- starting

    def start(self, posts: int) -> None:
        """The first runners, before anybody knows what there is to share."""
        for _ in range(posts):
            self._open_post(new=False)

    def lay_out(self, intakes: list[Intake], posts: int) -> None:
        """Have so many posts, spread every queue's slots over them, and tell the runners. Nothing that runs is stopped for it.

        `posts`: never more than there are slots, so whoever is one too many has none.
        """
        self._wanted = {intake: intake.slots for intake in intakes}
        others = bool(self.posts)
        for _ in range(posts - len(self.posts)):
            self._open_post(new=others)
        self._spread()
        without = [post for post in self.posts if not post.layout]
        without.sort(key=lambda post: (not post.new, post.busy, -post.number))
        for post in without[: max(0, len(self.posts) - posts)]:
            self.posts.remove(post)
            for child in (post.child, post.next):
                if child is not None:
                    self.retire(child)
        self._laid_out = True
        for child in tuple(self.children):
            if child.stage is Stage.LOADED:
                self._begin(child)

    def _open_post(self, *, new: bool) -> None:
        self._opened += 1
        post = Post(self._opened, new=new)
        self.posts.append(post)
        post.child = self._spawn(alone=False)

    def _spread(self) -> None:
        posts = [post for post in self.posts if not post.new]
        free = [{intake: post.free(intake) for intake in self._wanted} for post in posts]
        for post, share in zip(posts, spread([post.share for post in posts], self._wanted, free), strict=True):
            post.share = share
            self._tell(post)

    def _tell(self, post: Post) -> None:
        """Bring the runner's lanes to the share of its post, or where that cannot be the runner to its end."""
        child = post.child
        if child is None or child.stage is not Stage.READY:
            return
        has = {lane.intake: lane.slots for lane in child.lanes if lane.intake is not None}
        changed = [(intake, slots) for intake, slots in {**dict.fromkeys(has, 0), **post.share}.items() if slots != has.get(intake, 0)]
        for intake, slots in changed:
            if not child.share(intake, slots):
                self.replace(post)
        if changed:
            self._boss.on_share(child)

    def _spawn(self, *, alone: bool) -> Child:
        self._number += 1
        max_tasks = self._config.max_tasks
        child: Child
        if self._config.in_process:
            child = ThreadChild(self._number, alone=alone, max_tasks=max_tasks, app=self._app)
        else:
            child = ProcessChild(self._number, alone=alone, max_tasks=max_tasks)
        self.children.append(child)
        child.start(self._on_frame, self._on_end)
        config = self._config
        child.setup(
            Setup(
                app=config.app,
                app_dir=config.app_dir,
                url=self._url,
                durability=config.durability or "",
                worker=self._worker,
                title=f"beltline runner {self._number}{' alone' if alone else ''}: {config.app}",
                log_level=config.log_level,
            )
        )
        return child

    def _begin(self, child: Child) -> None:
        if child.begun:  # with no lane, perhaps, if its post is new
            return
        post = self._post_of(child)
        if post is not None:
            child.begin(post.layout)
        elif child.alone:
            child.begin([(None, 1)])
        else:
            child.stop()

    def _post_of(self, child: Child) -> Post | None:
        return next((post for post in self.posts if child in (post.child, post.next)), None)

    # ---- frames about themselves

    def _on_frame(self, child: Child, frame: ToSupervisor) -> None:
        match frame:
            case Hello():
                child.stage = max(child.stage, Stage.LOADED)
                child.hello = frame
                if self._boss.on_hello(child, frame) and self._laid_out and child.stage is Stage.LOADED:
                    self._begin(child)
            case Ready():
                self._on_ready(child)
            case Broken():
                self._on_broken(child, frame)
            case _:
                self._boss.on_work(child, frame)

    def _on_ready(self, child: Child) -> None:
        if child.stage is not Stage.LOADED:
            return
        child.stage = Stage.READY
        self.ever_ready = True
        post = self._post_of(child)
        if post is not None and post.next is child:
            old, post.child, post.next = post.child, child, None
            if old is not None:
                if old.stage < Stage.GONE:
                    child.before = old
                self.retire(old)
        if post is not None and post.new:
            post.new = False
            self._spread()
        elif post is not None:
            self._tell(post)  # what has changed since it began
        self._boss.on_ready(child)

    def _on_broken(self, child: Child, broken: Broken) -> None:
        child.stage = Stage.STOPPING
        text = broken.text if broken.usage else f"{broken.text}\n{broken.traceback}"
        if not self.ever_ready:
            self._boss.on_fatal(f"The app {self._config.app!r} cannot be started. {text}")
        else:
            log.error("%r cannot load the app; those that run go on with the old code: %s", child, text)

    # ---- leaving

    def retire(self, child: Child) -> None:
        """Deal it nothing more; it stops when it has finished what it runs."""
        if child.stage >= Stage.RETIRING:
            return
        if child.stage < Stage.READY:
            child.stop()
            return
        child.stage = Stage.RETIRING
        self._boss.on_retire(child)
        if child.held:
            child.take_back()
        else:
            child.stop()

    def spent(self, child: Child) -> None:
        """It may run (next to) nothing more: replace it."""
        post = self._post_of(child)
        if post is None:
            self.retire(child)
        else:
            self.replace(post)

    def replace(self, post: Post) -> None:
        if post.next is None and self.open and monotonic() >= post.start_at:
            post.next = self._spawn(alone=False)

    def replace_all(self) -> None:
        """New code: every runner is replaced by one that has loaded it. Where that cannot be loaded, the old one stays."""
        for post in self.posts:
            if post.child is not None and post.next is None and self.open:
                post.next = self._spawn(alone=False)
        for child in tuple(self.lone):
            self.retire(child)

    def _on_end(self, child: Child) -> None:
        """Its socket or its process has ended."""
        if child.stage is Stage.GONE:
            return
        if child.ended() is not None:
            self.bury(child)
        elif child.wire.closed and child.stage is not Stage.STOPPING:
            child.kill()  # nobody can speak to it any more; its end is reported next

    def kill(self, child: Child, why: str, culprits: set[int]) -> None:
        """End it now, whatever runs there. `culprits`: the serials this is for."""
        child.doomed = child.doomed or why
        child.culprits |= culprits
        if child.stage < Stage.RETIRING:
            child.stage = Stage.RETIRING
            self._boss.on_retire(child)
        if not child.kill():
            log.error("%r is a thread of this process and cannot be killed (%s): its thread is given up, its slots are replaced", child, why)
            child.wire.close()
            self.bury(child)

    def bury(self, child: Child) -> None:
        """It is gone: take in its last words, settle the blame, start another if its post is empty."""
        if child.stage is Stage.GONE:
            return
        child.wire.read_rest()
        code = child.ended()
        clean = child.stage is Stage.STOPPING and not child.held
        how = how_it_ended(code) if code is not None else "it did not end"
        if child.stage < Stage.RETIRING:
            self._boss.on_retire(child)
        stage = child.stage
        child.stage = Stage.RETIRING  # no frame may revive it
        if not clean:
            if not child.doomed:
                self.deaths += 1
            self._boss.on_death(child, child.doomed or how)
        self.children.remove(child)
        if child in self.lone:
            self.lone.remove(child)
            if not clean and not child.doomed:
                self._lone_pauses.append(child.started_at + RESTART_LEAST_S)
        for other in self.children:
            if other.before is child:
                other.before = None
        child.forget()
        self._fill(child, how, fruitless=(not child.done and stage is not Stage.STOPPING) or child.hello is None)
        self._boss.on_retire(child)

    def _fill(self, child: Child, how: str, *, fruitless: bool) -> None:
        post = self._post_of(child)
        if post is None:
            return
        now = monotonic()
        post.fruitless = post.fruitless + 1 if fruitless else 0
        if post.next is child:
            post.next = None
        else:
            post.child, post.next = post.next, None
        pause_s = min(RESTART_MOST_S, RESTART_LEAST_S * 2 ** max(0, post.fruitless - 2))
        post.start_at = max(now, child.started_at + pause_s)
        if not self.ever_ready and self.open and post.fruitless >= FIRST_DEATHS:
            self._boss.on_fatal(f"The runners die before they are ready: {how}.")
        elif post.child is None and self.open and now >= post.start_at:
            post.child = self._spawn(alone=False)

    # ---- lone runners

    def hire_lone(self, count: int, *, most: int) -> None:
        """See to it that `count` lone runners are free or on their way."""
        coming = sum(1 for child in self.lone if child.stage < Stage.READY or (child.stage is Stage.READY and not child.held))
        staying = sum(1 for child in self.lone if child.stage < Stage.RETIRING)
        now = monotonic()
        self._lone_pauses = [until for until in self._lone_pauses if until > now]  # places whose runner has just died
        for _ in range(min(count - coming, most - staying - len(self._lone_pauses))):
            if self.open:
                self.lone.append(self._spawn(alone=True))

    # ---- time

    def tick(self, now: float, *, needed_lone: int) -> None:
        """Every tenth of a second: the dead whose end was not reported, memory, missing runners, idle ones."""
        for child in tuple(self.children):
            if child.ended() is not None:
                self.bury(child)
            elif child.stage is Stage.STOPPING and now - child.stopped_at > STOP_S:
                self.kill(child, "it did not stop", set())
            elif child.stage is Stage.RETIRING and child.held and now - child.asked_back_at > LATE_S:
                child.take_back()
        if not self.open:
            return
        for post in self.posts:
            if post.next is None and now >= post.start_at:
                if post.child is None:
                    post.child = self._spawn(alone=False)
                elif post.child.stage is Stage.RETIRING or post.child.tasks_left == 0:
                    self.replace(post)
        idle = [child for child in self.lone if child.stage is Stage.READY and not child.held and now - child.idle_at > LONE_IDLE_S]
        for child in idle[: max(0, len(self.lone) - needed_lone)]:
            self.retire(child)

    def mean_rss_bytes(self) -> float:
        """The mean resident memory of the runners that are processes and ready; 0.0 = there is none."""
        sizes = [rss_bytes(child.pid) for child in self.children if child.stage is Stage.READY and isinstance(child, ProcessChild)]
        return sum(sizes) / len(sizes) if sizes else 0.0

    def check_memory(self, most_bytes: int) -> None:
        """Replace runners above the bound. They get nothing more at once: every further task would add to it."""
        for child in tuple(self.children):
            if child.stage is Stage.READY and isinstance(child, ProcessChild):
                child.rss_bytes = rss_bytes(child.pid)
                if child.rss_bytes > most_bytes:
                    log.info("%r has %d MiB (bound %d): replaced", child, child.rss_bytes >> 20, most_bytes >> 20)
                    self.spent(child)
                    self.retire(child)


def rss_bytes(pid: int) -> int:
    """Resident memory; 0 when the process is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123  # ten times a second: no Path object for it
            return int(file.read().split()[1]) * _PAGE
    except FileNotFoundError:
        pass
    except (OSError, ValueError, IndexError):
        return 0
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _page_size() -> int:
    import resource

    return resource.getpagesize()


_PAGE = _page_size()
