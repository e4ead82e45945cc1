"""The GPU entry point on Ray workers, each an actor that holds one loaded studio.

`run` takes a job to an idle worker (gpu_ray_worker.py) and yields its events. Files travel as
blocks of bytes through Ray's object store and land in the job's folder, so nothing needs a shared
file system. A worker that dies is replaced, and its song is made once more on another one. A Space,
and a studio without ACE_STUDIO_RAY, never import ray.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import beat
import bootstrap
from bootstrap import CHECKPOINTS
from events import Outcome, Problem, Progress, StudioError
from gpu_job import Job
from gpu_ray_worker import (
    NO_ROOM,
    NO_START,
    NO_WORKER,
    UNREACHABLE,
    Block,
    Worker,
    blocks_of,
    is_death,
    no_room,
    problem_of,
)
from params import SongRequest, model_of
from status import Status, WorkerStatus

log = logging.getLogger("studio")

RAY = "ACE_STUDIO_RAY"
WORKERS = "ACE_STUDIO_RAY_WORKERS"
CARDS = "ACE_STUDIO_RAY_GPUS"
LOCAL = "local"
# The variables that workers get.
MODELS = ("ACE_STUDIO_MODEL", "ACE_STUDIO_PLANNER", "ACE_STUDIO_LYRICS", "ACE_STUDIO_COMPILE")
ROOT = Path(__file__).resolve().parent
# What the cluster's machines do not get of ROOT.
NOT_SENT = [".git", ".venv", "models", "outputs", "tests", "docs", "*.log"]
STORE_BYTES = 256 * 2**20  # the object store of a cluster that is started here
CHECK_SECONDS = 1.0  # between two checks of the workers
# Between two status calls to an idle worker, and between two attempts to reach the cluster or to
# start a worker.
ASK_SECONDS = 5.0
NO_WORKER_SECONDS = 300.0  # how long a song waits while there is no worker
NO_ROOM_SECONDS = 60.0  # and while no machine has room for one
# How long the head may be silent before the studio leaves the cluster. Ray would end this process
# after 60.
HEAD_SECONDS = 20.0
LEAVE_SECONDS = 5.0  # how long songs and workers then have to end
PROBE_SECONDS = 2.0  # how long the head has to accept a connection
AGAIN = "The worker that was making this song is gone, so another one starts it again."


def wanted() -> str:
    """Return ACE_STUDIO_RAY: "" (this process), "local", "auto" or an address; a Space never uses Ray."""
    if os.environ.get("SPACE_ID") or bootstrap.on_zerogpu():
        return ""
    return os.environ.get(RAY, "").strip()


def count_wanted() -> int:
    """Return the number of workers in ACE_STUDIO_RAY_WORKERS; 0 leaves it to the number of cards."""
    text = os.environ.get(WORKERS, "").strip()
    if text.isdecimal():
        return int(text)
    return 0


# How well a worker fits the song model that a song asks for, the worse the smaller.
NOT_THERE = 0  # it is not on the worker's machine
READY = 1  # it is there, and not loaded
HELD = 2  # it is loaded
LATEST = 3  # the worker's latest song asked for it
FITS = {"missing": NOT_THERE, "ready": READY, "loaded": HELD}  # by the state that a status tells


@dataclass
class WorkerSlot:
    """One worker; its latest `status` is None while it starts."""

    name: str
    actor: Any
    answer: Any  # Ray's reference to the status that it owes, None if it owes none
    asked_at: float  # when that was asked for
    status: Status | None = None
    busy: bool = False
    lost: bool = False  # the studio has left the cluster
    loras: frozenset[str] = frozenset()  # the hashes of those that it holds
    model: str = ""  # that its latest song asked for, which its status may not tell yet
    songs: int = 0

    @property
    def holds_some(self) -> bool:
        """Whether it holds a song model that another one would take the place of."""
        assert self.status is not None
        return bool(self.songs) or any(each.state == "loaded" for each in self.status.song_models)

    def fit_for(self, model: str) -> int:
        """Return how well it fits a song of `model`, from NOT_THERE to LATEST."""
        assert self.status is not None
        if self.songs and model == self.model:
            return LATEST
        for each in self.status.song_models:
            named = model in (each.name, each.model) if model else each.own
            if named:
                return FITS[each.state]
        # A model of somebody's own is found by the worker.
        return NOT_THERE if model in CHECKPOINTS else READY


class Pool:
    """The workers of this studio: started in the background, checked every second, lent to one song at a time."""

    def __init__(self):
        self.problem: Problem | None = None
        self.status: Status | None = None  # the latest from a worker
        self._changed: Callable[[int], None] = lambda count: None
        self._slots: list[WorkerSlot] = []
        self._news = threading.Condition()
        self._ray: Any = None  # the module while connected
        self._head = ""  # its address once known
        self._head_answered_at = 0.0
        self._made = 0
        self._next_try = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(
        self, get_status: Callable[[], Status], changed: Callable[[int], None] | None = None
    ) -> None:
        """Start the workers, once; `get_status` runs in them, and `changed` gets their number."""
        with self._news:
            self._changed = changed or self._changed
            if wanted() and not self._thread:
                self._address = wanted()
                self._get_status = get_status
                self._thread = threading.Thread(target=self._keep, name="workers", daemon=True)
                self._thread.start()

    def workers(self) -> tuple[WorkerStatus, ...]:
        found: list[WorkerStatus] = []
        with self._news:
            for slot in self._slots:
                if slot.status:
                    found += [replace(worker, busy=slot.busy) for worker in slot.status.workers]
        return tuple(found)

    def take(
        self, loras: Collection[str], model: str | None = None
    ) -> Generator[Progress, None, WorkerSlot]:
        """Return the idle worker that holds the song `model` (None for words) and most of `loras`.

        Raises StudioError if none comes or Ray cannot be used.
        """
        alone_since = time.monotonic()
        while True:
            with self._news:
                slot = self._idle(loras, model)
                if slot is not None:
                    slot.busy = True
                    if model is not None:
                        slot.model = model
                        slot.songs += 1
                    return slot
                self._news.wait(beat.BEAT_SECONDS)
                alone = not any(slot.status for slot in self._slots)
                problem = self.problem
            if not alone:
                alone_since = time.monotonic()
                yield Progress("waiting")
                continue
            self._raise_if_hopeless(problem, time.monotonic() - alone_since)
            yield Progress("starting", note=problem.text() if problem else "")

    def _idle(self, loras: Collection[str], model: str | None) -> WorkerSlot | None:
        """Return the idle worker that fits best.

        Another model costs more than a LoRA: first comes a worker that holds the song `model`, of those the
        one that holds most of `loras` and least besides them. Where none holds it, one that has made no song
        yet takes it before one that would have to exchange its own.
        """

        def fit(slot: WorkerSlot) -> tuple[int, bool, int, int]:
            fitness = NOT_THERE if model is None else slot.fit_for(model)
            return (
                fitness,
                fitness < HELD and not slot.holds_some,
                len(slot.loras & set(loras)),
                -len(slot.loras),
            )

        idle = [slot for slot in self._slots if slot.status and not slot.busy]
        return max(idle, key=fit, default=None)

    def _raise_if_hopeless(self, problem: Problem | None, waited_seconds: float) -> None:
        """Raise StudioError if a song that has waited so long without any worker should not wait longer."""
        if problem and not self._ray:
            raise StudioError.from_problem(problem)
        if problem and problem.code == NO_ROOM and waited_seconds > NO_ROOM_SECONDS:
            raise StudioError.from_problem(problem)
        if waited_seconds > NO_WORKER_SECONDS:
            raise StudioError.from_problem(problem or NO_START)

    def give_back(self, slot: WorkerSlot) -> None:
        with self._news:
            slot.busy = False
            self._news.notify_all()

    def drop(self, slot: WorkerSlot) -> None:
        """Forget a worker that is gone; the next check makes another one."""
        with self._news:
            if slot in self._slots:
                self._slots.remove(slot)
                log.warning("%s is gone", slot.name)
        with contextlib.suppress(Exception):
            self._ray.kill(slot.actor)

    def dismiss(self) -> None:
        """Let the workers delete their folders: they are killed when this process ends."""
        self._stop.set()
        with contextlib.suppress(Exception):
            closing = []
            for slot in self._slots:
                if slot.status:
                    close = slot.actor.close.options(concurrency_group="cancels")
                    closing.append(close.remote())
            self._ray.wait(closing, num_returns=len(closing), timeout=LEAVE_SECONDS)

    def _keep(self) -> None:
        while not self._stop.is_set():
            try:
                if not self._ray and time.monotonic() >= self._next_try:
                    self._connect()
                if self._ray and answers(self._head):
                    self._head_answered_at = time.monotonic()
                    self._tend()
                elif self._ray and time.monotonic() - self._head_answered_at > HEAD_SECONDS:
                    raise StudioError.from_problem(UNREACHABLE)
            except Exception as error:
                self._trouble(problem_of(error))
            self._changed(len(self.workers()))
            self._stop.wait(CHECK_SECONDS)

    def _connect(self) -> None:
        self._next_try = time.monotonic() + ASK_SECONDS
        address = self._address
        if address != LOCAL and self._head:
            address = self._head
        ray = join(address)
        self._head = ray.get_runtime_context().gcs_address
        self._head_answered_at = time.monotonic()
        self._ray = ray
        self.problem = None
        how = "started here" if self._address == LOCAL else "joined the cluster"
        log.info("Ray %s, %s", ray.__version__, how)

    def _trouble(self, problem: Problem) -> None:
        """Remember `problem`, and leave the cluster if its head cannot be reached."""
        if problem != self.problem:
            log.warning("Ray: %s", problem.text())
        self.problem = problem
        if not self._ray or problem.code != UNREACHABLE.code:
            return
        with self._news:
            lost = self._slots
            self._slots = []
            for slot in lost:
                slot.lost = True
            ray = self._ray
            self._ray = None
            # Ray must not be shut down while a song is calling it.
            self._news.wait_for(lambda: not any(slot.busy for slot in lost), LEAVE_SECONDS)
        with contextlib.suppress(Exception):
            ray.shutdown()

    def _tend(self) -> None:
        """Take the workers' answers, ask idle ones again, drop the dead, and start those that are missing."""
        now = time.monotonic()
        for slot in list(self._slots):
            if slot.answer is None:
                if not slot.busy and now - slot.asked_at > ASK_SECONDS:
                    slot.answer = slot.actor.hello.remote(self._get_status)
                    slot.asked_at = now
            elif self._ray.wait([slot.answer], timeout=0)[0]:
                self._take_answer(slot)
            elif slot.status and not slot.busy and now - slot.asked_at > beat.SILENT_SECONDS:
                self.drop(slot)
        cards, count = self._size()
        missing = count - len(self._slots)
        if missing < 0:
            starting = [slot for slot in self._slots if not slot.status]
            for slot in starting[:-missing]:
                self.drop(slot)
        if now >= self._next_try:
            for _ in range(missing):
                self._make(cards, count)
        if any(slot.status for slot in self._slots):
            self.problem = None
        elif not self._has_room(cards):
            self.problem = no_room(cards)
        elif self.problem and self.problem.code == NO_ROOM:
            self.problem = None
        elif self.problem is None and self.status:
            self.problem = NO_WORKER  # there used to be one

    def _has_room(self, cards: float) -> bool:
        """Tell whether any machine is large enough for a worker, if nothing else runs there."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if cards:
            return any(node.get("GPU", 0) >= cards for node in nodes)
        return any(node.get("CPU", 0) >= 1 for node in nodes)

    def _take_answer(self, slot: WorkerSlot) -> None:
        try:
            status = self._ray.get(slot.answer)
        except Exception as error:
            self.drop(slot)
            # A worker that cannot start is not started again every second.
            self._next_try = time.monotonic() + ASK_SECONDS
            if not is_death(error):
                self._trouble(problem_of(error))
            return
        with self._news:
            slot.answer = None
            slot.status = status
            self.status = status
            self._news.notify_all()

    def _size(self) -> tuple[float, int]:
        """Return the cards per worker (ACE_STUDIO_RAY_GPUS; 0 for the processor) and the number of workers."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        all_cards = sum(node.get("GPU", 0) for node in nodes)
        try:
            cards = max(float(os.environ.get(CARDS, "").strip()), 0.0)
        except ValueError:
            cards = 1.0 if all_cards else 0.0
        if cards:
            count = int(all_cards / cards)
        elif self._address == LOCAL:
            count = 1
        else:
            count = sum("CPU" in node for node in nodes)
        return cards, count_wanted() or max(count, 1)

    def _make(self, cards: float, count: int) -> None:
        self._made += 1
        name = f"worker-{self._made}"
        environ = {variable: os.environ[variable] for variable in MODELS if variable in os.environ}
        if not cards:
            threads = 1
            if self._address == LOCAL:
                threads = max((os.cpu_count() or 1) // count, 1)
            environ["OMP_NUM_THREADS"] = str(threads)
        remote_class = self._ray.remote(
            concurrency_groups={"songs": 1, "cancels": 1},
            num_gpus=cards,
            num_cpus=0 if cards else 1,
            scheduling_strategy="SPREAD",
        )(Worker)
        actor = remote_class.remote(name, environ)
        answer = actor.hello.remote(self._get_status)
        with self._news:
            self._slots.append(WorkerSlot(name, actor, answer, time.monotonic()))


pool = Pool()


def join(address: str) -> Any:
    """Start Ray here (`address` "local") or join a cluster; returns the module ray. Raises its errors."""
    if address.startswith("ray://"):
        hint = 'Start the studio on a machine of the cluster with ACE_STUDIO_RAY=auto, or name the head as "host:6379".'
        raise StudioError(
            "ray_client", "Ray's client (ray://) cannot stream what a worker returns.", hint=hint
        )
    # Ray would wait minutes for a head that does not answer.
    if address not in (LOCAL, "auto") and not answers(address):
        raise StudioError.from_problem(UNREACHABLE)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Otherwise any call after a lost connection would start a cluster.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    import ray

    ray.shutdown()  # a lost connection may have left something behind
    settings: dict[str, Any] = {"runtime_env": {"working_dir": str(ROOT), "excludes": NOT_SENT}}
    if address == LOCAL:
        settings = {
            "num_cpus": max(os.cpu_count() or 1, count_wanted()),
            "object_store_memory": STORE_BYTES,
            "include_dashboard": False,
            "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT)}},
        }
    ray.init(address, log_to_driver=False, configure_logging=False, **settings)
    return ray


def answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def run(
    entry: Callable[[Job], Generator[Any]], get_status: Callable[[], Status], job: Job
) -> Generator[Any]:
    """Yield the events of `entry(job)` on a worker, or on another one if it dies; raises StudioError. Closing cancels.

    `get_status` runs on the worker, too.
    """
    pool.start(get_status)
    for attempt in (1, 2):
        model = model_of(job.request) if isinstance(job.request, SongRequest) else None
        slot = yield from pool.take({spec.info.sha256 for spec in job.loras}, model)
        try:
            yield from _streamed(slot, entry, job)
            return
        except Exception as error:
            if not is_death(error):
                raise StudioError.from_problem(problem_of(error)) from error
            pool.drop(slot)
            if attempt == 2:
                message = "Two workers in a row died while they were making this song."
                hint = "Try fewer takes or a shorter song; Ray's logs say why they died."
                raise StudioError("ray_died", message, hint=hint) from error
        finally:
            pool.give_back(slot)
        yield Progress("waiting", note=AGAIN)


def _streamed(slot: WorkerSlot, entry: Callable[[Job], Generator[Any]], job: Job) -> Generator[Any]:
    """Yield the events of `entry(job)` on the worker in `slot`; files land in the job's folder."""
    import ray

    folder = Path(job.folder)
    paths = dict(job.audio)
    for spec in job.loras:
        if spec.info.sha256 not in slot.loras:
            paths[spec.info.sha256] = spec.path
    files = {key: [ray.put(data) for data in blocks_of(path)] for key, path in paths.items()}
    run_on_worker = slot.actor.run.options(num_returns="streaming", concurrency_group="songs")
    stream = run_on_worker.remote(entry, job, files)
    latest = Progress("preparing")
    latest_event_at = time.monotonic()
    try:
        while not job.cancelled():
            if slot.lost:
                raise StudioError.from_problem(UNREACHABLE)
            if not ray.wait([stream], timeout=beat.BEAT_SECONDS)[0]:
                if time.monotonic() - latest_event_at > beat.SILENT_SECONDS:
                    raise TimeoutError(f"{slot.name} was silent for {beat.SILENT_SECONDS:g} s")
                yield latest
                continue
            try:
                item = ray.get(next(stream))
            except StopIteration:
                return
            latest_event_at = time.monotonic()
            if isinstance(item, tuple):
                slot.loras = frozenset(item)
            elif isinstance(item, Block):
                path = folder / Path(item.name).name
                with path.open("ab" if item.follows else "wb") as file:
                    file.write(item.data)
            elif isinstance(item, Outcome):
                yield _with_files_in(folder, item)
            else:
                if isinstance(item, Progress):
                    latest = item
                yield item
    finally:
        with contextlib.suppress(Exception):
            slot.actor.cancel.options(concurrency_group="cancels").remote(folder.name)


def _with_files_in(folder: Path, outcome: Outcome) -> Outcome:
    """Return a worker's outcome with the takes' files in `folder`."""
    takes = []
    for take in outcome.takes:
        if take.file:
            take = replace(take, file=str(folder / Path(take.file).name))
        takes.append(take)
    return replace(outcome, takes=tuple(takes))
