"""Something to send to that is no task of this app, or not on its own queue."""

from typing import Any

from msgspec import structs

from beltline.core.codec import pack, unpack
from beltline.core.errors import BodyTooLarge
from beltline.core.message import Message
from beltline.core.names import QueueName, task_name
from beltline.handles import Host
from beltline.sending import Options, Sendable, Target
from beltline.tasks import Task, TaskHost, build_message


class Remote(Sendable[..., Any]):
    """A task known by name only. Arguments travel by position and name as given; the worker checks them."""

    def __init__(self, app: TaskHost, name: str, queue: QueueName) -> None:
        self.app = app
        self.name = task_name(name)
        self.queue = queue

    def _target(self) -> Target:
        return self

    def takes(self, name: str) -> bool:
        return True  # nobody here knows: whatever is given is an argument

    def message(self, args: tuple[Any, ...], kwargs: dict[str, Any], chosen: Options) -> Message:
        body = pack([list(args), kwargs])
        if len(body) > self.app.max_body:
            raise BodyTooLarge(size_bytes=len(body), limit_bytes=self.app.max_body)
        return build_message(self.name, self.queue, body, chosen)

    def read_result(self, data: bytes) -> Any:
        return unpack(data)


class Elsewhere(Sendable[..., Any]):
    """A task of this app, sent to another queue than its own."""

    def __init__(self, task: Task[..., Any], queue: QueueName) -> None:
        self._task = task
        self.queue = queue

    @property
    def app(self) -> Host:
        return self._task.app

    def _target(self) -> Target:
        return self

    def takes(self, name: str) -> bool:
        return self._task.takes(name)

    def message(self, args: tuple[Any, ...], kwargs: dict[str, Any], chosen: Options) -> Message:
        return structs.replace(self._task.message(args, kwargs, chosen), queue=self.queue)

    def read_result(self, data: bytes) -> Any:
        return self._task.read_result(data)
