"""What Gradio keeps of each open page between two events: values of gr.State, and components that an event has changed.

A session gets a place only once there is something to keep, so that programs, whose calls change no page,
cannot push pages out, however many they make.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

from gradio.state_holder import SessionState, StateHolder


class PageSession(SessionState):
    """A session without Gradio's copy of every component's settings.

    That takes a megabyte and more time than most calls, only for links to a filled form, which the
    studio does not offer.
    """

    def __init__(self, blocks: Any, keep: Callable[[PageSession], None]):
        # Gradio copies the settings of `blocks.blocks`.
        without_settings: Any = SimpleNamespace(default_config=blocks.default_config, blocks=())
        super().__init__(without_settings)
        self._keep = keep

    def __setitem__(self, key: int, value: Any) -> None:
        super().__setitem__(key, value)
        self.config_values.clear()
        self._keep(self)

    def _update_config(self, key: int) -> None:
        pass

    def _update_value_in_config(self, key: int, value: Any) -> None:
        pass


class PageSessions(StateHolder):
    """Keeps the sessions of up to `capacity` pages; the one used least recently makes room for another."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        # Those that have nothing to keep, as long as an event uses them: events that run at once
        # share one.
        self._unkept: WeakValueDictionary[str, SessionState] = WeakValueDictionary()

    def __getitem__(self, session_id: str) -> SessionState:
        with self._lock:
            kept = self.session_data.get(session_id)
            if kept is not None:
                self.session_data.move_to_end(session_id)
                return kept
            session = self._unkept.get(session_id)
            if session is None:
                session = PageSession(self.blocks, partial(self._keep, session_id))
                self._unkept[session_id] = session
            return session

    def _keep(self, session_id: str, session: PageSession) -> None:
        with self._lock:
            self._unkept.pop(session_id, None)
            self.session_data[session_id] = session
            self.session_data.move_to_end(session_id)
            while len(self.session_data) > self.capacity:
                name, oldest = self.session_data.popitem(last=False)
                self._unkept[name] = oldest

    def delete_all_expired_state(self) -> None:
        """Delete nothing: a page that has lost its connection, or slept, is still open."""


def use_for(demo: Any) -> None:
    """Let a page that is served keep its sessions here."""
    sessions = PageSessions()
    sessions.set_blocks(demo)
    demo.app.state_holder = sessions
