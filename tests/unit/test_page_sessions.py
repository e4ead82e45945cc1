"""What Gradio keeps of open pages: calls of programs take none of their places, and nothing expires."""

from __future__ import annotations

import gc
import threading

import gradio as gr
import pytest

import app
import page_sessions


@pytest.fixture(scope="module")
def demo():
    return app.build_app()


@pytest.fixture
def holder(demo):
    demo.state_session_capacity = 3
    found = page_sessions.PageSessions()
    found.set_blocks(demo)
    return found


@pytest.fixture
def state(holder):
    """Return the number of a gr.State of the page."""
    return next(
        number
        for number, block in holder.blocks.default_config.blocks.items()
        if isinstance(block, gr.State)
    )


def names(holder):
    gc.collect()
    return [*holder.session_data]


def test_a_call_that_changes_nothing_on_a_page_takes_no_place(holder, state):
    holder["page"][state] = ["a take"]
    for number in range(10):
        session = holder[f"call {number}"]
        assert session.blocks_config.fns and session.get(state) is None
    del session
    assert names(holder) == ["page"] and len(holder._unkept) == 0
    assert "page" in holder and "call 1" not in holder
    assert holder["page"][state] == ["a take"]


def test_events_of_a_new_page_that_run_at_once_share_its_state(holder, state):
    one, other = holder["page"], holder["page"]
    assert one is other
    one[state] = ["a take"]
    del one, other
    assert holder["page"][state] == ["a take"]


def test_a_component_that_an_event_changed_is_kept_for_its_page_alone(holder):
    number, block = next(
        each for each in holder.blocks.default_config.blocks.items() if isinstance(each[1], gr.HTML)
    )
    changed = gr.HTML("changed", render=False)
    holder["page"][number] = changed
    holder["page"]._update_value_in_config(number, "changed")
    assert holder["page"][number] is changed and holder["another"][number] is block
    assert names(holder) == ["page"]


def test_the_page_used_least_recently_makes_room_and_keeps_its_state_while_an_event_runs(
    holder, state
):
    for name in "abc":
        holder[name][state] = [name]
    assert holder["a"][state] == ["a"]
    running = holder["b"]
    holder["a"], holder["c"]
    holder["d"][state] = ["d"]
    assert names(holder) == ["a", "c", "d"]
    assert holder["b"] is running and holder["b"][state] == ["b"]
    running[state] = ["later"]
    assert names(holder) == ["c", "d", "b"]


def test_a_page_whose_connection_was_lost_keeps_what_it_shows(holder, state):
    session = holder["page"]
    session[state] = ["a take"]
    session.is_closed = True
    session._state_ttl[state] = (0, session._state_ttl[state][1])
    holder.delete_all_expired_state()
    assert holder["page"][state] == ["a take"]
    assert all(not expired for *_, expired in holder["page"].state_components)


def test_pages_that_come_at_once_are_all_kept_up_to_the_limit(holder, state):
    def visit(name):
        for number in range(50):
            holder[name][state] = [number]

    threads = [threading.Thread(target=visit, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names(holder)) == 3
