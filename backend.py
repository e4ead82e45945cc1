"""Requests in, events out: one song at a time on one pipeline.

`Backend.stream` prepares a request outside the GPU (uploads, seeds, folder), lets gpu.py run one
picklable `Job` where the models are, and turns the result into files with `takes.finish`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import bootstrap
import estimate
import gpu
import gpu_ray
import gpu_zero
import jobs
import lora_format
import lora_sources
import model_hub
import model_memory
import models
import prompt_facts
import selfcheck
import song_align
import song_length
import takes
import tooltips
import writers
from events import (
    SHARES,
    Done,
    Event,
    Failed,
    InvalidRequest,
    Outcome,
    Problem,
    Progress,
    Shares,
    SongDraft,
    StudioError,
    shares_by,
)
from gpu_job import Job, SongJob
from limits import AUTOMATIC_GPU_SECONDS, AUTOMATIC_SECONDS, LIMITS, STUDIO_VERSION, Limit
from model_weights import (
    CHECKPOINTS,
    DEFAULT_MODEL_GB,
    NO_COVER,
    NO_MORPH,
    Weights,
    checkpoint_kind,
    is_turbo,
    task_support,
)
from params import (
    CHOOSE_TRACK,
    OF_SONGWRITER,
    AlignRequest,
    CoverRequest,
    DescribeRequest,
    EditRequest,
    GenerateRequest,
    Request,
    Settings,
    SongRequest,
    WrittenRequest,
    check_audio,
    check_source,
    model_of,
    parse_request,
    settle,
    with_sketch,
)
from record import HERE, WordsRecord, WordsResult, library_versions, words_record
from status import SongModelStatus, SongwriterStatus, Status, WorkerStatus

log = logging.getLogger("studio")

# Off ZeroGPU all requests share one pipeline; there each call has its own worker.
SONGS_AT_ONCE = 8 if gpu.ON_ZEROGPU else 1  # with Ray as many as there are workers


def on_worker(job: Job) -> Generator[Event | Outcome]:
    """Run `job` in a Ray worker, which uses the models on its machine and downloads missing ones."""
    try:
        studio = get_backend()
        # This machine's checkpoints decide, not those of the machine that sent the job.
        request = studio.with_model(job.request)
        yield from studio.gather(request)
        yield from gpu.entry(replace(job, request=request, settings=studio.settle(request)), 0)
    except Exception as error:
        yield Failed(gpu.problem_of(error))


def worker_status() -> Status:
    return get_backend().full_status()  # runs on the Ray worker


class Backend:
    def __init__(self):
        self.models = models.Models(writers.planner_slot, writers.lyrics_slot)
        self.placing = model_memory.Placing(self.models)
        # By folder. Remembered, because `spaces` deletes the files once the weights are packed.
        self._widths: dict[Path, lora_format.Widths] = {}
        # Bytes that a download would fetch, by repository, where the hub was asked.
        self._to_fetch: dict[str, int] = {}
        self._paces = estimate.Paces()

    def song_model(self, request: Request) -> Weights:
        """Return the song model that `request` asks for, with its problem if it is not here."""
        return self.models.find(model_of(self.with_model(request)))

    def with_model(self, request: Request) -> Request:
        """Let an action that works with tracks take the model trained for them, if it is here and none is named."""
        if not isinstance(request, EditRequest) or model_of(request) or gpu_ray.wanted():
            return request
        if request.action not in CHOOSE_TRACK:
            return request
        stems = self.models.find("base")
        if stems.folder is None or stems == self.models.weights:
            return request
        options = request.options.model_copy(update={"model": "base"})
        return request.model_copy(update={"options": options})

    def widths(self, model: str = "") -> lora_format.Widths | None:
        """Return the linear layers of a song model that a LoRA must fit; None until it has been downloaded."""
        folder = self.models.find(model).folder
        if folder is None:
            return None
        if folder not in self._widths:
            found = lora_format.widths_of(folder)
            if found:
                self._widths[folder] = found
        return self._widths.get(folder)

    def status(self) -> Status:
        """Return what is known without loading anything; with Ray, a worker's latest status."""
        if not gpu_ray.wanted():
            return self._status_here()
        return replace(gpu_ray.pool.status or self._status_here(), workers=gpu_ray.pool.workers())

    def full_status(self) -> Status:
        """Return `status` with the device, which imports torch; with Ray only the workers do."""
        if not gpu_ray.wanted():
            self.models.device()
        return self.status()

    def _status_here(self) -> Status:
        weights = self.models.weights
        device = self.models.known_device
        device_kind = device.kind if device else ""
        kind = checkpoint_kind(weights)
        reads_codes = self.models.has_audio_codes(weights)
        busy = self.models.turn.locked() and not self.models.preparing
        return Status(
            engine="preview" if weights.is_built_in_engine else "xl",
            model=weights.model_id,
            revision=weights.revision,
            source=weights.source,
            kind=kind,
            turbo=is_turbo(weights),
            problem=weights.problem,
            download_gb=DEFAULT_MODEL_GB,
            device=device_kind,
            device_reason=device.reason if device else "",
            dtype=self.models.dtype if device else "",
            memory_plan=self.placing.text() if device else "",
            memory_plans=model_memory.plans_on(device, self.models.distrusted),
            selfcheck=selfcheck.summary(self.models),
            planner=self.models.planner.status(),
            songwriter=self._songwriter_status(),
            song_models=self._song_models(),
            tasks=task_support(kind, reads_codes),
            unsupported={} if reads_codes else {"cover": NO_COVER},
            timed_lyrics=song_align.support(weights),
            workers=(
                WorkerStatus(
                    id=HERE,
                    node="",
                    pid=os.getpid(),
                    device=device_kind,
                    busy=busy,
                    models=tuple(each.model_id for each in self.models.held),
                    switches=self.models.switches,
                ),
            ),
        )

    def _song_models(self) -> tuple[SongModelStatus, ...]:
        """Return the official checkpoints, and the studio's own model in place of the one of its kind."""
        own = self.models.weights
        names = list(CHECKPOINTS)
        if checkpoint_kind(own) not in names:
            names.append(checkpoint_kind(own))
        return tuple(self._song_model_status(name) for name in names)

    def _song_model_status(self, name: str) -> SongModelStatus:
        weights = self.models.find(name)
        kind = checkpoint_kind(weights)
        state: Literal["ready", "loaded", "missing"] = "missing"
        size = DEFAULT_MODEL_GB
        if weights.folder is not None:
            state = "loaded" if self.models.is_loaded(weights) else "ready"
            size = self.models.bytes_of(weights) / 10**9
        return SongModelStatus(
            name=name,
            kind=kind,
            model=weights.model_id,
            state=state,
            own=weights == self.models.weights,
            size_gb=round(size, 2),
            tasks=task_support(kind, self.models.has_audio_codes(weights)),
            problem=weights.problem,
            gpu_seconds=self._seconds_of_a_minute(name) if gpu.ON_ZEROGPU else 0,
            download_gb=self._download_gb(weights),
        )

    def _download_gb(self, weights: Weights) -> float:
        """Return what a download of a song model would fetch; 0 if it is here or cannot be fetched.

        On ZeroGPU only what was placed at start makes songs, and Ray's workers have disks of their own.
        """
        if weights.folder is not None or not weights.repo or gpu.ON_ZEROGPU or gpu_ray.wanted():
            return 0.0
        missing = self._to_fetch.get(weights.repo)
        if missing is None:
            return DEFAULT_MODEL_GB
        return max(round(missing / 10**9, 1), 0.1)

    def ask_size(self, model: str) -> None:
        """Ask the hub how much of a song model is missing, for the status; raises StudioError."""
        repo = self.models.find(model).repo
        self._to_fetch[repo] = model_hub.missing_bytes(repo)

    def _seconds_of_a_minute(self, model: str) -> int:
        """Return the seconds that ZeroGPU is asked for a minute of music by a song model."""
        words = {"prompt": "a song", "duration": 60.0, "options": {"model": model}}
        return gpu_zero.gpu_seconds(self._work(parse_request("generate", words), 0.0))

    def _songwriter_status(self) -> SongwriterStatus:
        status = self.models.lyrics.status()
        return SongwriterStatus(
            state=status.state,
            model=status.model,
            source=status.source,
            problem=status.problem,
            engine=self.models.lyrics.weights.engine,
        )

    def capabilities(self) -> dict[str, Any]:
        return {
            "studio": STUDIO_VERSION,
            **self.full_status().facts(),
            "limits": {name: _limit_facts(limit) for name, limit in LIMITS.items()},
            "versions": library_versions(),
        }

    def stream(self, request: Request) -> Generator[Event]:
        """Run `request`: yield progress, then `Done` or `Failed`. Closing the generator cancels it."""
        try:
            request = self.with_model(request)
            yield from jobs.with_times(self._run(request), self._shares(request))
        except Exception as error:
            yield Failed(gpu.problem_of(error))
        finally:
            model_memory.trim_heap()

    def download(self, model: str = "") -> Generator[Event]:
        """Download a song model, by default the real weights. Closing the generator stops the download."""
        try:
            repo = self.models.weights.wanted
            if model:
                weights = self.models.find(model)
                if not self._download_gb(weights):
                    raise StudioError("not_offered", tooltips.NOT_OFFERED)
                repo = weights.repo
            yield from model_hub.download(repo)
            yield from self.models.refreshing()
            yield Done((), WordsResult())
        except Exception as error:
            yield Failed(gpu.problem_of(error))

    def _shares(self, request: Request) -> Shares:
        """Return how much of a song's run each stage is, by the time that it should take here."""
        if not isinstance(request, SongRequest):
            return SHARES
        seconds = {}
        try:
            is_built_in = self.song_model(request).is_built_in_engine
            usual = estimate.BUILT_IN_PACES if is_built_in else None
            seconds = self._paces.seconds(self.work_of(request, check_audio(request)), usual)
        except StudioError:  # the run itself will say it
            return SHARES
        if isinstance(request, WrittenRequest):
            words = estimate.work_of(request.words, None)
            seconds["writing"] = estimate.seconds_by_stage(words)["writing"]
        return shares_by(seconds)

    def _run(self, request: Request) -> Generator[Event]:
        if isinstance(request, WrittenRequest):
            request = yield from self._with_words(request)
        if not gpu_ray.wanted():
            yield from self.gather(request)
        output = None
        if isinstance(request, SongRequest):
            output = takes.output_folder()
        with jobs.job_for(request, self.settle(request), self.automatic_length(request)) as job:
            yield Progress("preparing")
            for name in job.audio:
                seconds = yield from jobs.decode_upload(job, name)
                if name == "source":
                    check_source(request, seconds)
                yield Progress("preparing")
            work = self.work_of(request, jobs.source_seconds(job))
            problem = gpu_zero.refusal(work) if gpu.ON_ZEROGPU else None
            if problem:
                raise StudioError.from_problem(problem)
            if isinstance(job, SongJob):
                job = yield from self._with_loras(job)
                # ZeroGPU is asked for seconds before anybody can ask for a draft, and would have to
                # be paid for one that nobody hears. On a Ray worker nobody sees the question.
                here = not gpu.ON_ZEROGPU and not gpu_ray.wanted()
                job = replace(job, offers_draft=here)
            checks = self._check_seconds()
            asked = gpu_zero.gpu_seconds(work, checks)
            events = gpu.run(job, asked, on_worker, worker_status)
            with contextlib.closing(events):
                # Nothing is read after the result: on ZeroGPU, giving back the card may fail or
                # never end.
                for event in events:
                    if isinstance(event, Outcome | Failed):
                        break
                    if isinstance(event, SongDraft):
                        event = takes.draft_for_page(event)
                    yield event
                else:
                    raise StudioError("cancelled", "Cancelled before it was done.")
            if isinstance(event, Outcome) and event.ran.gpu and not checks:
                gpu_zero.learn(work, event.ran.gpu)
            if isinstance(event, Failed):
                yield event
            elif isinstance(job, SongJob) and output is not None:
                with contextlib.closing(takes.finish(job, event, output)) as saved:
                    for news in saved:
                        if isinstance(news, Done):
                            self._paces.learn(work, news.song["seconds"])
                        yield news
            else:
                yield Done((), _words_record(job, event))

    def _with_words(self, request: WrittenRequest) -> Generator[Event, None, Request]:
        """Write the words of a song first; where nobody can, it is made from what was sent."""
        try:
            with contextlib.closing(self._run(request.words)) as events:
                for event in events:
                    if isinstance(event, Failed):
                        raise StudioError.from_problem(event.problem)
                    if isinstance(event, Done):
                        return with_sketch(request, _sketch_of(event.words))
                    yield event
        except StudioError as error:
            idea = request.idea
            if not idea and not request.prompt:
                raise
            model = "songwriter" if request.words.mode == "lyrics" else "planner"
            note = f"The {model} did not write the words: {error.problem.message}"
            yield Progress("preparing", note=note)
            return with_sketch(request, {"prompt": idea})
        raise StudioError("cancelled", "Cancelled before it was done.")

    def _check_seconds(self) -> int:
        """Return the seconds that a card of ZeroGPU needs to prove itself, if it has not yet."""
        if not gpu.ON_ZEROGPU:
            return 0
        selfcheck.use_remembered(self.models)
        return selfcheck.due_seconds(self.models)

    def _with_loras(self, job: SongJob) -> Generator[Event, None, SongJob]:
        specs = []
        for choice in job.request.options.loras:
            spec = yield from lora_sources.prepare(
                choice.source,
                choice.weight,
                folder=Path(job.folder),
                widths=self.widths(model_of(job.request)),
                uploads=(bootstrap.page_folder(),),
            )
            specs.append(spec)
        return replace(job, loras=tuple(specs))

    def gather(self, request: Request) -> Generator[Event]:
        """Download missing models that were named explicitly; raises StudioError if a required one is missing."""
        loaded = self.models
        is_song = isinstance(request, SongRequest)
        weights = self.song_model(request)
        if is_song or isinstance(request, DescribeRequest | AlignRequest):
            if weights.source == "hub":
                yield from model_hub.download(weights.wanted)
                yield from loaded.refreshing()
                weights = self.song_model(request)
            if weights.folder is None:
                missing = Problem("no_weights", "The model's weights are missing.")
                raise StudioError.from_problem(weights.problem or missing)
        if isinstance(request, CoverRequest) and not loaded.has_audio_codes(weights):
            raise StudioError(
                "unsupported", NO_COVER, hint="Use a checkpoint that has both, such as XL SFT."
            )
        if isinstance(request, AlignRequest):
            return
        slot = loaded.lyrics if request.mode in OF_SONGWRITER else loaded.planner
        if is_song and (slot.problem or not writers.wants_plan(request)):
            return
        if slot.weights.source == "hub":
            with contextlib.suppress(StudioError):  # the slot remembers it
                yield from slot.fetch()
                yield from loaded.refreshing()
        # A song can be made without a plan; its record says why.
        if not is_song:
            slot.check()

    def settle(self, request: Request) -> Settings | None:
        """Return the settings of a song on the checkpoint that it asks for, None for words."""
        if not isinstance(request, SongRequest):
            return None
        return settle(request, checkpoint_kind(self.song_model(request)))

    def automatic_length(self, request: Request) -> song_length.Automatic | None:
        """Return the bounds of a song's automatic length; None for anything else.

        On ZeroGPU it is limited to what one call may take of a visitor's GPU time.
        """
        if not isinstance(request, GenerateRequest) or request.duration is not None:
            return None
        settings = settle(request, checkpoint_kind(self.song_model(request)))
        completed, _ = prompt_facts.completed(request)
        guess = song_length.guess(completed, built_in=settings.built_in)
        longest = AUTOMATIC_SECONDS
        if gpu.ON_ZEROGPU:
            longest = estimate.longest(
                self._work(request, 0.0), AUTOMATIC_GPU_SECONDS, gpu_zero.experience.seconds
            )
            guess = replace(guess, seconds=min(guess.seconds, longest))
        return song_length.Automatic(longest, guess)

    def work_of(self, request: Request, source: float = 0.0) -> estimate.Work:
        """Return the work of `request`, whose source is `source` seconds long; an automatic length counts in full."""
        work = self._work(request, source)
        automatic = self.automatic_length(request)
        if automatic is None:
            return work
        if work.planner:
            return replace(work, duration=automatic.longest)
        return replace(work, duration=automatic.guess.seconds)

    def _work(self, request: Request, source: float) -> estimate.Work:
        planned = self.models.planner.weights.folder is not None
        return estimate.work_of(request, self.settle(request), source=source, planner=planned)


def _sketch_of(words: WordsResult) -> Mapping[str, Any]:
    """Return the song in words that a planner wrote, or that a songwriter wrote the lyrics of."""
    if "sketch" in words:
        return words["sketch"]
    return {"lyrics": words["text"]}


def _words_record(job: Job, outcome: Outcome) -> WordsRecord:
    return words_record(
        outcome.ran,
        mode=job.request.mode,
        request=jobs.request_entry(job),
        seed=job.seeds[0],
        result=outcome.result,
    )


def _limit_facts(limit: Limit) -> dict[str, Any]:
    return {"low": limit.low, "high": limit.high, "default": limit.default, "unit": limit.unit}


_backend: Backend | None = None
_backend_lock = threading.Lock()


def get_backend() -> Backend:
    global _backend
    with _backend_lock:
        if _backend is None:
            takes.prune()
            _backend = Backend()
        return _backend


def check(request: Request, studio: Backend) -> None:
    """Check the files of `request` by their headers, its model, and that one call to ZeroGPU is enough.

    Raises InvalidRequest.
    """
    source = check_audio(request)
    if model_of(request) and not gpu_ray.wanted():  # a worker may have what this machine has not
        weights = studio.song_model(request)
        if weights.problem:
            raise InvalidRequest(weights.problem)
        if getattr(request, "action", "") == "morph" and is_turbo(weights):
            raise InvalidRequest(Problem("unsupported", NO_MORPH, "action"))
    if not bootstrap.on_zerogpu():
        return
    problem = gpu_zero.refusal(studio.work_of(request, source))
    if problem:
        fields = [name for name in ("duration", "after", "takes") if hasattr(request, name)]
        raise InvalidRequest(replace(problem, field=fields[0] if fields else ""))


def seconds_of(request: Request, studio: Backend) -> float:
    """Estimate the seconds of `request` on ZeroGPU's card, from its fields and its files' headers.

    Raises InvalidRequest for a file that is not audio. Other machines take longer, by a factor that
    `Runs` measures.
    """
    return estimate.seconds_needed(studio.work_of(request, check_audio(request)))


gpu.serve(get_backend)

if gpu.ON_ZEROGPU:
    # `spaces` only intercepts weights that are moved to "cuda" at import, on the main thread.
    get_backend().models.load_all()
    get_backend().widths()
