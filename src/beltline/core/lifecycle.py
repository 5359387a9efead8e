"""Five states, and the table of every move between them.

    delayed --due--> ready --receive--> leased(epoch n) --receive after lease_until--> leased(epoch n+1)
                       ^                   |
                       +---- release ------+--- ack ---> done        + retry ---> delayed (attempt > 0)
                       +------------------- redrive --- dead <------ dead-letter

Writes   only a hand-out moves `epoch`; only the holder of the current epoch settles or renews; time alone makes a leased message receivable again.
Failure  runner dies: its supervisor settles or releases for it. Host dies: receivable at `lease_until`. A late settle is accepted while nobody else received it.
Below    TRANSITIONS: a pair that is not in it is illegal and changes nothing; tests/core/test_lifecycle.py walks every row and every missing one.
"""

from enum import IntEnum, StrEnum


class State(IntEnum):
    """The five states; the numbers are what engines store."""

    DELAYED = 0
    READY = 1
    LEASED = 2
    DONE = 3
    DEAD = 4

    @property
    def word(self) -> str:
        return self.name.lower()


class Move(StrEnum):
    DUE = "due"
    RECEIVE = "receive"
    RENEW = "renew"
    ACK = "ack"
    RETRY = "retry"
    RELEASE = "release"
    DEAD_LETTER = "dead_letter"
    CANCEL = "cancel"
    EXPIRE = "expire"
    REDRIVE = "redrive"
    HURRY = "hurry"
    PUT_OFF = "put_off"


TRANSITIONS: dict[tuple[State, Move], tuple[State, ...]] = {
    (State.DELAYED, Move.DUE): (State.READY,),
    (State.DELAYED, Move.HURRY): (State.READY,),
    (State.DELAYED, Move.PUT_OFF): (State.DELAYED,),  # the newest of its unique key wants to wait longer
    (State.DELAYED, Move.CANCEL): (State.DONE,),
    (State.DELAYED, Move.EXPIRE): (State.DONE,),
    (State.READY, Move.RECEIVE): (State.LEASED,),
    (State.READY, Move.CANCEL): (State.DONE,),
    (State.READY, Move.EXPIRE): (State.DONE,),
    (State.LEASED, Move.RECEIVE): (State.LEASED, State.DEAD),  # the lease ran out: next epoch, or poison
    (State.LEASED, Move.RENEW): (State.LEASED,),
    (State.LEASED, Move.ACK): (State.DONE,),
    (State.LEASED, Move.RETRY): (State.DELAYED, State.READY),
    (State.LEASED, Move.RELEASE): (State.READY, State.DELAYED),
    (State.LEASED, Move.DEAD_LETTER): (State.DEAD,),
    (State.LEASED, Move.CANCEL): (State.LEASED, State.DONE),  # a request: its worker ends it, or, once the lease is over, the next receive
    (State.DEAD, Move.REDRIVE): (State.READY,),
    (State.DEAD, Move.CANCEL): (State.DONE,),
}


def allowed(state: State, move: Move) -> tuple[State, ...]:
    """Where `move` may lead from `state`; empty when it may not be made at all."""
    return TRANSITIONS.get((state, move), ())
