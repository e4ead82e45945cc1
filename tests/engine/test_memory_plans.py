"""Memory plans on the tiny checkpoint: the same song with less in memory, and one plan lower when memory runs out."""

from __future__ import annotations

import copy
import gc
import sys
import weakref

import numpy as np
import psutil
import pytest
import torch
from diffusers import AutoencoderOobleck
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import audio
import audio_export
import backend
import bootstrap
import estimate
import model_memory
import model_offload
import models
import modes
from events import Done, Failed, Progress
from gpu_job import SongJob
from params import parse_request, settle
from tests.card import KIND
from tests.engine.songs import samples_of, wait_for_turn
from tests.ledger import SCALES_AND_WIDE
from tests.program import python
from tests.weights import CPU, round_weights, weights_in
from tools import full_size


@pytest.fixture
def card(monkeypatch):
    """Give the processor a card's memory plans."""
    monkeypatch.setitem(model_memory.LADDERS, "cpu", model_memory.LADDERS["cuda"])


def song(pipe, folder, mode="generate", **values):
    """Make a song without the studio; return its samples."""
    files = {} if mode == "generate" else {"source": a_source(folder, 10)}
    length = {} if files else {"duration": 10}
    request = parse_request(
        mode, {"prompt": "calm piano", **length, **files, "options": {"steps": 2}, **values}
    )
    *_, outcome = modes.run(
        pipe, SongJob(request, (7,), (8,), str(folder), files, settings=settle(request, "sft"))
    )
    (take,) = outcome.takes
    assert take.problem is None, take.problem
    return audio.read_wav(take.file)


def a_source(folder, seconds):
    """Write a tone; return its path."""
    wave = 0.3 * np.sin(np.arange(seconds * 48_000) * 0.03, dtype=np.float32)
    audio_export.write_wav(folder / "source.wav", np.stack([wave, wave]))
    return str(folder / "source.wav")


@pytest.fixture
def other_card(monkeypatch):
    """Add a card whose tensors refuse those of the processor; return the device."""
    monkeypatch.setitem(model_memory.LADDERS, KIND, model_memory.LADDERS["cuda"])
    monkeypatch.setattr(model_memory, "room_for_models", lambda kind: None)
    device = models.Device(KIND, "float32", "float32", "float32", "a test")
    monkeypatch.setattr(models, "pick_device", lambda weights: device)
    return device


@pytest.fixture
def studio(monkeypatch, tmp_path, card, make_studio):
    """Return a fresh studio with both language models and a card's memory plans."""
    monkeypatch.setenv("ACE_STUDIO_OUTPUT", str(tmp_path / "songs"))
    return make_studio(built=False)


def ask(studio, mode="generate", **values):
    if mode == "generate":
        options = {"steps": 2, "plan": False, **values.pop("options", {})}
        values = {"prompt": "calm piano", "duration": 10, "seed": 7, **values, "options": options}
    return list(studio.stream(parse_request(mode, values)))


def done(studio, mode="generate", **values):
    last = ask(studio, mode, **values)[-1]
    assert isinstance(last, Done), last
    return last


def runs_out(monkeypatch, *plans):
    """Let pipelines of these plans run out of memory; return the plans tried."""
    tried, build = [], models.build_pipeline

    def built(weights, device, layout):
        pipe = build(weights, device, layout)
        plan = backend.get_backend().placing.plan or "resident"
        tried.append(plan)
        if plan in plans:
            pipe.transformer.register_forward_pre_hook(out_of_memory)
        return pipe

    def out_of_memory(*_):
        torch.empty(10**15)  # more than any processor can address

    monkeypatch.setattr(models, "build_pipeline", built)
    return tried


SHORT = {"max_tokens": 16}
MORPH = {"action": "morph", "source_prompt": "loud drums"}


@pytest.mark.parametrize(
    "tasks",
    [
        pytest.param({"generate": {}}, marks=pytest.mark.numbers),
        pytest.param({"cover": {}, "edit": MORPH}, marks=pytest.mark.slow),
    ],
    ids=" and ".join,
)
def test_offloading_makes_the_same_song_in_every_mode(other_card, tiny, pipe, tmp_path, tasks):
    apart = models.build_pipeline(weights_in(tiny), other_card, models.Layout(in_parts=True))
    for mode, values in tasks.items():
        made = song(apart, tmp_path, mode, **values)
        # On other devices torch computes attention by the formula, without its own kernel.
        assert np.allclose(made, song(pipe, tmp_path, mode, **values), atol=1e-4), mode


@pytest.fixture
def most_placed(studio, monkeypatch):
    """Return a function that gives the most bytes of weights on the card since its last call.

    They are added up whenever a layer works. The plans count weights alone, no working memory.
    """
    for name in ("song_bytes", "coding_bytes", "planner_bytes"):
        monkeypatch.setattr(model_memory, name, lambda song: 0)
    for name in ("SPARE_BYTES", "SONGWRITER_WORK_BYTES"):
        monkeypatch.setattr(model_memory, name, 0)
    # The tiny models' files are as wide as what is loaded from them.
    monkeypatch.setattr(model_memory, "_bytes_a_number", lambda part, device: 2)
    built = weakref.WeakSet()  # whatever was loaded and is still there, in use or not
    found = [0]
    card = torch.device(KIND).type

    def look(module, inputs):
        # The own table: Module.parameters() takes ten times as long, and this runs before each layer.
        if not module._parameters:
            return
        built.add(module)
        placed = {}
        for each in built:
            for parameter in each._parameters.values():
                if parameter is not None and parameter.device.type == card:
                    placed[id(parameter)] = parameter.nbytes
        found[0] = max(found[0], sum(placed.values()))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(look)

    def most():
        gc.collect()
        most = found[0]
        found[0] = 0
        return most

    yield most
    hook.remove()


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["offload", "swap", "fp8"])
def test_over_a_sequence_no_more_weights_are_on_the_card_than_the_plan_counted(
    other_card, studio, most_placed, tmp_path, plan
):
    """The card's tensors refuse those of the processor, so each part is there when it works."""
    options = {"memory_plan": plan, "steps": 2}
    source = a_source(tmp_path, 5)
    cover = {"prompt": "calm piano", "source": source, "options": options}

    def placed():
        # Lyrics have no option for the plan: everything may be there.
        assert studio.placing.plan == ("resident" if studio.placing.use.writes else plan)
        counted = studio.placing.choice.need
        used = most_placed()
        assert 0 < used <= counted, (used, counted)

    for planned in (False, True):
        made = done(studio, options={**options, "plan": planned})
        assert made.record["plan"]["used"] == planned and made.record["memory_plan"] == plan
        placed()
    done(studio, "cover", **cover)
    placed()
    events = studio.stream(parse_request("cover", cover))
    # Cancelled while the transformer is there.
    next(event for event in events if getattr(event, "stage", "") == "steps" and event.step)
    events.close()
    wait_for_turn(studio)
    most_placed()
    done(studio, options={**options, "plan": True})
    placed()
    done(studio, "lyrics", brief="rain", options=SHORT)
    placed()


def test_one_part_at_a_time_is_on_the_device(tiny, card):
    pipe = models.build_pipeline(weights_in(tiny), CPU, models.Layout(in_parts=True))
    moves = []
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            part.to = lambda place, name=name: moves.append(
                f"{name} {'out' if place == 'cpu' else 'in'}"
            )
    for name in ("text_encoder", "transformer", "transformer", "vae"):
        pipe.transformer._hf_hook.bring(name)
    assert moves == [
        "text_encoder in",
        "text_encoder out",
        "transformer in",
        "transformer out",
        "vae in",
    ]
    assert pipe._execution_device == torch.device("cpu")


@pytest.mark.numbers
@pytest.mark.slow
def test_eight_bits_halve_the_transformer_and_make_the_song_of_rounded_weights(
    tiny, pipe, tmp_path
):
    device = models.Device("cpu", "float32", "float16", "float32", "a test")
    small = models.build_pipeline(weights_in(tiny), device, models.Layout(eight_bits="stored"))
    layer = small.transformer.layers[0].mlp.up_proj
    assert layer.codes.dtype == torch.float8_e4m3fn
    assert small.transformer.dtype == small.transformer.scale_shift_table.dtype == torch.float32
    made = song(small, tmp_path)
    # A pipeline that is never narrow, whose weights have the values that the narrow one stores.
    rounded = models.build_pipeline(weights_in(tiny), CPU)
    for name, part in rounded.components.items():
        if isinstance(part, torch.nn.Module) and name != "vae":
            round_weights(part, torch.float16)
    for module in rounded.transformer.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.copy_(in_three_bits(module.weight))
    assert np.allclose(made, song(rounded, tmp_path), atol=1e-4)
    assert not np.allclose(made, song(pipe, tmp_path), atol=1e-2)


def in_three_bits(numbers: torch.Tensor) -> torch.Tensor:
    """Return `numbers` with three bits after the leading one, however small they are."""
    part, exponent = torch.frexp(numbers)
    return torch.ldexp(torch.round(part * 16) / 16, exponent)


@pytest.mark.numbers
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_any_scale_are_stored_as_exactly_as_8_bits_allow(dtype):
    """In place of a row's scale, float8 alone loses numbers below 2^-9, and rounds coarser below 2^-6."""
    torch.manual_seed(0)
    # Spreads of the rows: large, of a trained layer, of a hardly trained one, and so small that nothing would be left.
    spreads = torch.tensor([30.0, 0.02, 0.004, 1e-4, 1e-9, 0.0])
    layer = torch.nn.Linear(2048, len(spreads)).to(getattr(torch, dtype))
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape) * spreads[:, None])
        exact = layer.weight.double()
        bias = layer.bias.clone()
        part = torch.nn.ModuleDict({"layer": layer})
        model_offload.store_in_8_bits(part, getattr(torch, dtype))
        errors = (layer.weight.double() - exact).norm(dim=1)[:-1] / exact.norm(dim=1)[:-1]
        alone = (exact.to(torch.float8_e4m3fn).double() - exact).norm(dim=1)[:-1]
        print(
            f"{dtype}: {errors.tolist()}, without scales {(alone / exact.norm(dim=1)[:-1]).tolist()}"
        )
        # Rounding is off by at most half a step of three bits.
        assert (errors <= torch.finfo(torch.float8_e4m3fn).eps / 2).all()
        assert not layer.weight[-1].any()
        x = torch.randn(3, 2048).to(layer.weight.dtype)
        assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, bias))
    # A scale is a power of two, so a number that 8 bits hold is the same as before.
    whole = torch.nn.Linear(2048, 2, bias=False).to(getattr(torch, dtype)).requires_grad_(False)
    whole.weight.copy_(in_three_bits(torch.rand(2, 2048) + 1e-3))
    before = whole.weight.clone()
    model_offload.store_in_8_bits(torch.nn.ModuleList([whole]), before.dtype)
    assert torch.equal(whole.weight, before) and whole.codes.nbytes == before.numel()


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_a_transformer_in_8_bits_takes_the_bytes_that_are_counted(dtype):
    """At the real model's shapes, on tensors without numbers."""
    with FakeTensorMode(), torch.no_grad():
        transformer = full_size.shapes()["transformer"]()
        numbers = sum(each.numel() for each in transformer.parameters())
        model_offload.store_in_8_bits(transformer, getattr(torch, dtype))
        taken = sum(each.nbytes for each in transformer.state_dict().values())
    number_bytes = estimate.bytes_a_number(dtype)
    assert taken - numbers == estimate.bytes_beyond_8_bits(estimate.XL, number_bytes)
    assert taken - numbers == SCALES_AND_WIDE[dtype]


@pytest.fixture
def float8_card(card, monkeypatch):
    """Let the processor stand in for a card with float8 arithmetic, which torch computes on it as well."""
    monkeypatch.setattr(
        model_memory,
        "plans_on",
        lambda device, distrusted=(): (*model_memory.LADDERS["cuda"], "fast8"),
    )


@pytest.mark.slow
def test_a_forced_plan_changes_the_memory_and_only_in_8_bits_the_song(studio, float8_card):
    def transformer():
        return studio.models.pipeline().transformer

    def layer():
        return transformer().layers[0].mlp.up_proj

    assert studio.status().memory_plan == ""
    assert studio.capabilities()["memory_plan"] == "everything resident"
    (whole,) = samples_of(done(studio))
    assert not hasattr(transformer(), "_hf_hook")
    parts = done(studio, options={"memory_plan": "offload"})
    assert parts.record["memory_plan"] == "offload"
    assert studio.status().memory_plan == model_memory.TEXTS["offload"]
    assert transformer()._hf_hook.on_device == "vae"
    assert np.array_equal(whole, *samples_of(parts))
    done(studio, options={"memory_plan": "fp8"})
    assert layer().codes.dtype == torch.float8_e4m3fn
    planned = done(studio, options={"memory_plan": "fast8", "plan": True})
    assert planned.record["memory_plan"] == "fast8" and planned.record["plan"]["used"]
    assert (
        layer().codes.dtype == torch.float8_e4m3fn
        and transformer().proj_out_conv.weight.dtype == torch.float32
    )
    # The planner stays beside the song model, which takes half of its room.
    assert studio.models.planner.loaded
    (made,) = samples_of(done(studio, options={"memory_plan": "fast8"}))
    # How near it comes depends on how the processor rounds; each layer is as exact as 8 bits allow (below).
    assert not np.array_equal(made, whole)
    assert done(studio).record["memory_plan"] == "resident"
    assert not hasattr(transformer(), "_hf_hook") and not hasattr(layer(), "codes")


@pytest.mark.numbers
def test_8_bit_layers_answer_as_exactly_as_8_bits_allow_and_take_half_the_memory():
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(96, 192), torch.nn.Linear(192, 20)).to(
        torch.bfloat16
    )
    layers, x = copy.deepcopy(plain), torch.randn(2, 50, 96).to(torch.bfloat16)
    model_offload.use_float8(layers, "cpu")
    # With three bits after the leading one, rounding moves a number by up to a sixteenth. Both factors of a product are
    # rounded, and independently, so squares add up.
    rounding = torch.finfo(torch.float8_e4m3fn).eps / 2
    with torch.no_grad():
        assert layers[0].codes.nbytes == plain[0].weight.nbytes / 2
        exact = torch.nn.functional.linear(
            x.double(), plain[0].weight.double(), plain[0].bias.double()
        )
        for ours, theirs, factors in (
            (layers[0](x), exact, 2),
            (layers[0].weight, plain[0].weight, 1),
        ):
            assert ours.dtype == torch.bfloat16
            assert (ours.double() - theirs).norm() < factors**0.5 * rounding * theirs.norm()
        assert torch.equal(layers[0](torch.zeros_like(x)), plain[0](torch.zeros_like(x)))
    # Its 20 rows are no whole multiple of 16.
    assert type(layers[1]) is torch.nn.Linear


class Live(TorchDispatchMode):
    """Adds up the storages that operations make and that are still there: `most` bytes at once."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage):
        if storage in self.known:
            return
        self.known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size):
        self.now -= size


def test_the_vaes_working_memory_is_counted_as_its_layers_need_it():
    """At the real VAE's shapes, on tensors without numbers."""
    shape = {
        **estimate.XL_VAE,
        **{"channel_multiples": [1, 2, 4, 8, 16], "decoder_input_channels": 64},
        **{"audio_channels": 2, "sampling_rate": 48_000},
    }
    used = []
    with FakeTensorMode(), torch.no_grad():
        vae = AutoencoderOobleck(**shape).eval()
        assert sum(each.numel() for each in vae.parameters()) == pytest.approx(168.7e6, rel=0.01)
        assert vae.tile_sample_min_length == estimate.ENCODED_SAMPLES
        assert vae.tile_latent_min_length == estimate.DECODED_FRAMES
        for work, tile in (
            (vae.encode, torch.empty(1, 2, estimate.ENCODED_SAMPLES)),
            (vae.decode, torch.empty(1, 64, estimate.DECODED_FRAMES)),
        ):
            with Live() as live:
                work(tile)
            used.append(live.most)
    counted = estimate.coding_bytes(estimate.SongSize(60.0, vae_number_bytes=4))
    assert 0.99 * counted < max(used) < counted + model_memory.SPARE_BYTES
    # A decoder that is wide beside its encoder counts as well.
    wide = {**estimate.XL_VAE, "encoder_hidden_size": 16}
    decoding = estimate.coding_bytes(estimate.SongSize(60.0, vae=wide, vae_number_bytes=4))
    assert 0.99 * decoding < used[1] < decoding + model_memory.SPARE_BYTES


def test_a_plan_or_a_song_that_does_not_fit_is_refused_before_loading(studio, monkeypatch):
    failed = ask(studio, options={"memory_plan": "fast8"})[-1]
    assert isinstance(failed, Failed) and failed.problem.field == "options.memory_plan"
    assert "must be one of auto, resident, swap, offload, fp8, not fast8" in failed.problem.message
    assert "Hopper" in failed.problem.hint
    assert "fast8" not in studio.status().memory_plans
    monkeypatch.setattr(model_memory, "room_for_models", lambda kind: 1_000_000)
    failed = ask(studio)[-1]
    assert isinstance(failed, Failed) and failed.problem.code == "out_of_memory"
    assert "0.0 GB are free" in failed.problem.message
    assert not studio.models.loaded


@pytest.mark.slow
def test_after_a_lack_of_memory_in_8_bits_the_smallest_plan_is_next(
    studio, float8_card, monkeypatch
):
    monkeypatch.setattr(model_memory, "room_for_models", lambda kind: None)
    tried = runs_out(monkeypatch, "fast8")
    record = done(studio, options={"memory_plan": "fast8"}).record
    assert tried == ["fast8", "fp8"]
    assert model_memory.fallback_note("fast8", "fp8") in record["notes"]


def test_sizes_follow_the_files_and_room_is_free_memory_and_our_own(tiny, monkeypatch):
    sizes = model_memory.sizes_of(
        weights_in(tiny), models.Device("cuda", "bfloat16", "bfloat16", "bfloat16", "")
    )
    files = sum(path.stat().st_size for path in tiny.rglob("*.safetensors"))
    assert sizes.pipeline == files > sizes.transformer > 0
    assert model_memory.sizes_of(weights_in(tiny), CPU).pipeline == 2 * files
    # A model whose files are moved while it is loaded does not count as nothing.
    assert model_memory.sizes_of(weights_in(tiny / "moved"), CPU).pipeline > 20 * model_memory.GB
    assert model_memory.room_for_models("cpu") > psutil.Process().memory_info().rss
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert model_memory.room_for_models("cuda") is None


@pytest.mark.slow
def test_out_of_memory_the_song_is_made_one_plan_lower_with_a_note(studio, monkeypatch):
    monkeypatch.setattr(model_memory, "room_for_models", lambda kind: None)
    # "swap" has the same pipeline as "resident", so it fails too.
    runs_out(monkeypatch, "swap", "resident")
    *progress, failed = ask(studio)
    assert isinstance(failed, Failed) and failed.problem.code == "out_of_memory"
    *progress, last = ask(studio)
    assert isinstance(last, Done), last
    assert last.record["memory_plan"] == "offload"
    note = model_memory.fallback_note("swap", "offload")
    assert note in last.record["notes"]
    assert note in [event.note for event in progress if isinstance(event, Progress)]
    again = done(studio).record
    assert again["memory_plan"] == "offload" and again["notes"] == []


def test_on_zerogpu_out_of_memory_is_an_error_with_what_would_fit(studio, monkeypatch):
    monkeypatch.setattr(bootstrap, "on_zerogpu", lambda: True)
    tried, computed = runs_out(monkeypatch, "resident"), []
    studio.models.pipeline().transformer.register_forward_pre_hook(
        lambda *_: computed.append(1), prepend=True
    )
    *progress, failed = ask(studio, takes=4, duration=60)
    assert isinstance(failed, Failed) and failed.problem.code == "out_of_memory"
    assert failed.problem.hint == "It should fit with 1 take, or with 25 seconds of music."
    assert not any(event.note for event in progress)
    assert tried == ["resident"] and len(computed) == 1


def test_on_zerogpu_no_plan_needs_the_files_which_are_gone_once_they_are_packed(
    tiny, tmp_path, monkeypatch
):
    for path in tiny.rglob("*"):
        link = tmp_path / "snapshot" / path.relative_to(tiny)
        if path.is_file():
            blob = tmp_path / path.relative_to(tiny).as_posix().replace("/", "-")
            blob.write_bytes(path.read_bytes())
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
    monkeypatch.setenv("ACE_STUDIO_MODEL", str(tmp_path / "snapshot"))
    studio = backend.Backend()
    studio.models.pipeline()
    for blob in tmp_path.glob("*.safetensors"):
        blob.unlink()
    monkeypatch.setattr(bootstrap, "on_zerogpu", lambda: True)
    assert studio.placing.text() == model_memory.TEXTS["resident"]
    request = parse_request("generate", {"prompt": "calm piano"})
    assert studio.placing.begin(request, studio.settle(request), 0.0) == "resident"


@pytest.mark.slow
def test_swap_keeps_one_model_loaded(studio):
    done(studio, "lyrics", brief="rain", options={"max_tokens": 16})
    assert studio.models.lyrics.loaded
    assert done(studio, options={"memory_plan": "swap", "plan": True}).record["plan"]["used"]
    assert (studio.models.loaded, studio.models.planner.loaded, studio.models.lyrics.loaded) == (
        True,
        False,
        False,
    )
    again = done(studio, "lyrics", brief="rain", options={"max_tokens": 16})
    assert again.record["memory_plan"] == "resident"


PEAK = r"""
import re, sys
from pathlib import Path
from bootstrap import bootstrap
bootstrap()
import backend, events, params
options = {"steps": 2, "plan": False}
request = {"prompt": "x", "duration": float(sys.argv[1]), "seed": 7, "options": options}
*_, last = backend.get_backend().stream(params.parse_request("generate", request))
assert isinstance(last, events.Done), last
# Not ru_maxrss, which starts at what the process that started this one held.
print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.matrix
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is there on Linux only")
def test_the_longest_song_runs_in_bounded_memory():
    result = python("-c", PEAK, "600")
    assert result.returncode == 0, result.stderr
    peak = int(result.stdout.split()[-1])
    print(f"600 s: {peak:,} MB")
    assert peak < 3_400
