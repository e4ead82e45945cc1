"""The self-check: a fast path that gives other results here is found and switched off, and the song is right."""

from __future__ import annotations

import platform
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import backend
import bootstrap
import cli
import estimate
import gpu_zero
import model_memory
import model_offload
import models
import modes
import planner as planning
import planner_decoding
import planner_layers
import selfcheck
import song_attention
import song_compilation
import song_vae
from audio import read_wav
from events import Progress
from gpu_job import SongJob
from model_weights import Weights
from params import parse_request, settle
from tests.engine.recording import Recording
from tests.weights import CPU, PLANNER, weights_in

SECONDS = 30  # attention works in windows beyond 20 s
# Float32 in another order, over two steps and a VAE (test_memory_plans.py has the same bound).
NEAR = 1e-4


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Switch the self-check on, with a file of the test's own."""
    monkeypatch.setenv(selfcheck.SETTING, "on")
    monkeypatch.setattr(selfcheck, "file", lambda: tmp_path / "cache" / selfcheck.FILE)
    return tmp_path / "cache" / selfcheck.FILE


@pytest.fixture
def loaded(tiny, monkeypatch) -> models.Models:
    """Models whose song model counts as a real one."""
    found = backend.Backend().models
    found.weights = weights_in(tiny)
    monkeypatch.setattr(found, "known_device", CPU)
    return found


@pytest.fixture
def fresh(tiny):
    """A pipeline whose VAE works in short tiles, which saves most of a check's time."""
    pipe = models.build_pipeline(weights_in(tiny), CPU)
    use_tiles_of(pipe.vae, SHORT_TILE)
    return pipe


SHORT_TILE = 128  # frames, twice the overlap of the stock VAE


def use_tiles_of(vae, frames) -> None:
    vae.tile_latent_min_length = frames
    vae.tile_sample_min_length = frames * vae.hop_length


def use_tiles_of_songs(vae) -> None:
    vae.tile_latent_min_length = estimate.DECODED_FRAMES
    vae.tile_sample_min_length = estimate.ENCODED_SAMPLES


@pytest.fixture(scope="module")
def planner_model():
    weights = Weights("planner", PLANNER, "variable", "", "transformers", None, "planner")
    return planning.load_planner(weights, CPU)


def prove(loaded, pipe) -> list[Progress]:
    return list(selfcheck.song_model(loaded, pipe))


def song(pipe, folder) -> np.ndarray | None:
    """Return the samples of a song, None if it failed."""
    request = parse_request(
        "generate", {"prompt": "calm piano", "duration": SECONDS, "options": {"steps": 2}}
    )
    job = SongJob(request, (7,), (8,), str(folder), settings=settle(request, "sft"))
    *_, outcome = modes.run(pipe, job)
    (take,) = outcome.takes
    if take.problem:
        return None
    return read_wav(take.file)


@pytest.fixture(scope="module")
def right(pipe, tmp_path_factory) -> np.ndarray:
    """The song without a fault."""
    return song(pipe, tmp_path_factory.mktemp("right"))


# --- faults that are planted --------------------------------------------------------------------------------------


def wrong_window(monkeypatch, pipe):
    tables_for = song_attention.tables_for

    def wide(transformer, x):
        tables = tables_for(transformer, x)
        return tables._replace(
            inner=torch.zeros_like(tables.inner), last=torch.zeros_like(tables.last)
        )

    monkeypatch.setattr(song_attention, "tables_for", wide)


def no_numbers(monkeypatch, pipe):
    windows = song_attention._windows
    monkeypatch.setattr(song_attention, "_windows", lambda *given: windows(*given) * torch.nan)


def stale_cache(monkeypatch, pipe):
    heads = song_attention.condition_heads
    kept = {}

    def first_ones(layer, condition):
        kept.setdefault(layer, heads(layer, condition))
        return kept[layer]

    # What another song has left there.
    selfcheck._pass(pipe, selfcheck._condition_of(pipe.transformer, 9), frozenset())
    monkeypatch.setattr(song_attention, "condition_heads", first_ones)
    selfcheck._pass(pipe, selfcheck._condition_of(pipe.transformer, 9), frozenset())


def a_piece_too_late(monkeypatch, pipe):
    in_pieces = song_vae._in_pieces

    def late(*given, **named):
        return in_pieces(*given, **named).roll(1, dims=-1)

    monkeypatch.setattr(song_vae, "_in_pieces", late)


def too_little_overlap(monkeypatch, pipe):
    pipe.vae.tile_latent_overlap = 1


def tiles_that_end_in_silence(monkeypatch, pipe):
    """Only the tiles of songs are long enough to be wrong, by less than the stock VAE's tiles overlap."""
    use_tiles_of_songs(pipe.vae)
    hop = pipe.vae.hop_length
    overlap = pipe.vae.tile_latent_overlap
    longest = pipe.vae.tile_latent_min_length

    def silence(module, inputs, output):
        if longest - 2 * overlap < output.shape[-1] // hop <= longest:
            output[..., -2 * overlap * hop :] = 0
        return output

    pipe.vae.decoder.register_forward_hook(silence)


def sums_in_any_order(monkeypatch, pipe):
    calls = []

    def shift(module, inputs, output):
        if torch.are_deterministic_algorithms_enabled():
            return output
        calls.append(1)
        return output * (1 + 1e-3 * len(calls))

    pipe.transformer.proj_out_conv.register_forward_hook(shift)


FAULTS = {
    "wrong window": (wrong_window, "windows"),
    "no numbers": (no_numbers, "windows"),
    "stale cache": (stale_cache, "condition"),
    "a piece of sound too late": (a_piece_too_late, "pieces"),
    "too little overlap": (too_little_overlap, "tiles"),
    "tiles that end in silence": (tiles_that_end_in_silence, "tiles"),
    "sums in any order": (sums_in_any_order, "repeats"),
}


@pytest.fixture
def any_order():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_switched_off_and_the_song_is_right(
    name, loaded, fresh, right, monkeypatch, tmp_path, any_order
):
    plant, path = FAULTS[name]
    plant(monkeypatch, fresh)
    wrong = song(fresh, tmp_path)
    assert wrong is None or not np.array_equal(wrong, right)
    prove(loaded, fresh)
    assert list(loaded.distrusted) == [path]
    assert selfcheck.WORDS[path] in selfcheck.summary(loaded)
    made = song(fresh, tmp_path)
    assert made is not None and np.allclose(made, right, atol=NEAR)


@pytest.mark.slow
def test_without_a_fault_nothing_is_switched_off_and_nothing_is_checked_twice(
    loaded, fresh, tiny, place, monkeypatch
):
    events = prove(loaded, fresh)
    paths = ["windows", "condition", "pieces", "tiles", "repeats"]
    assert [event.stage for event in events] == ["checking"] * len(paths)
    found = selfcheck.remembered(loaded)
    assert [finding.path for finding in found] == paths
    assert all(finding.agrees for finding in found) and not loaded.distrusted
    text = place.read_text() + selfcheck.report(loaded)
    assert "- measured: song_load_seconds " in text
    assert str(tiny) not in text and str(place) not in text
    assert platform.node() not in text
    assert prove(loaded, fresh) == []
    again = models.build_pipeline(weights_in(tiny), CPU)
    assert prove(loaded, again) == []
    # Another version, device or checkpoint is another combination.
    monkeypatch.setattr(selfcheck, "STUDIO_VERSION", "another")
    assert len(prove(loaded, models.build_pipeline(weights_in(tiny), CPU))) == len(paths)


@pytest.mark.slow
def test_what_was_found_is_switched_off_at_the_next_start_without_a_check(
    loaded, fresh, tiny, monkeypatch
):
    with monkeypatch.context() as patch:
        wrong_window(patch, fresh)
        prove(loaded, fresh)
    loaded.distrusted.clear()
    again = models.build_pipeline(weights_in(tiny), CPU)
    assert prove(loaded, again) == []
    assert "windows" in again.transformer.avoided and "windows" in loaded.distrusted


def test_what_was_found_under_another_layout_is_found_again(loaded):
    check = selfcheck.Check("windows", 0.0, lambda: 1.0, lambda: None)
    loaded.layout = models.Layout(in_parts=True)
    list(selfcheck._prove(loaded, "song", [check], dict))
    loaded.layout = models.Layout()
    assert selfcheck.WORDS["windows"] in cli.self_check(SimpleNamespace(models=loaded))
    assert "- attention in windows: DISAGREES" in selfcheck.report(loaded)
    # A song under this layout is proven by itself.
    good = selfcheck.Check("windows", 2.0, lambda: 1.0, lambda: None)
    assert len(list(selfcheck._prove(loaded, "song", [good], dict))) == 1
    assert [finding.agrees for finding in selfcheck.remembered(loaded)] == [False]
    selfcheck.forget(loaded)
    assert selfcheck.remembered(loaded) == []


@pytest.mark.slow
def test_the_command_does_every_check_and_ends_with_a_status(
    loaded, tiny, place, monkeypatch, capsys
):
    planner = Weights("planner", PLANNER, "variable", "", "transformers", None, "planner")
    monkeypatch.setattr(loaded.planner, "weights", planner)
    studio = SimpleNamespace(models=loaded, placing=model_memory.Placing(loaded))
    monkeypatch.setattr(backend, "get_backend", lambda: studio)
    monkeypatch.setattr(bootstrap, "bootstrap", lambda: None)
    assert cli.prove() == 0
    lines = capsys.readouterr().out.splitlines()
    (report,) = (number for number, line in enumerate(lines) if "paste this" in line)
    paths = ["fp8", "windows", "condition", "pieces", "tiles", "repeats", "joined", "planner"]
    found = [line.partition(":")[0] for line in lines[:report] if line]
    assert found == [selfcheck.WORDS[path] for path in paths]
    assert f"torch: {torch.__version__}" in lines[report:]
    assert not any(str(tiny) in line or str(place) in line for line in lines)
    # Again, with a fault: what is remembered does not count.
    wrong_window(monkeypatch, loaded.pipeline())
    loaded.unload_pipeline()
    assert cli.prove() == 1
    assert f"{selfcheck.WORDS['windows']}: DISAGREES" in capsys.readouterr().out
    # Without a song model there is a sentence.
    monkeypatch.setattr(loaded, "weights", weights_in(tiny / "moved"))
    loaded.unload_pipeline()
    assert cli.prove() == 1


def test_two_checkpoints_in_folders_are_two(loaded, tmp_path):
    def facts_with(number: float) -> str:
        folder = tmp_path / "model" / "transformer"
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"weight": torch.full((400, 400), number)}
        save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
        loaded.weights = weights_in(tmp_path / "model")
        return selfcheck.facts_of(loaded)["model"]

    assert facts_with(1.0) == facts_with(1.0) != facts_with(2.0)
    assert facts_with(1.0).startswith("a folder ")


def test_off_is_off_and_the_built_in_engine_does_not_wait(loaded, pipe, monkeypatch):
    monkeypatch.setattr(loaded, "weights", backend.Backend().models.weights)
    assert prove(loaded, pipe) == []
    monkeypatch.setattr(loaded, "weights", weights_in(loaded.weights.local_folder))
    monkeypatch.setenv(selfcheck.SETTING, "off")
    assert prove(loaded, pipe) == []
    assert selfcheck.due_seconds(loaded) == 0


def test_a_file_that_cannot_be_read_is_no_file(loaded, place):
    place.parent.mkdir()
    for text in ("{", "[]", '{"x": {"findings": [{"path": 1}]}}', '{"x": 3}'):
        place.write_text(text)
        assert selfcheck.remembered(loaded) == []
        selfcheck.use_remembered(loaded)


def finding_of(check):
    found = selfcheck._finding(check)
    assert found is not None
    return found


def test_a_check_without_memory_finds_nothing(loaded, fresh, place):
    def out_of_memory():
        raise torch.OutOfMemoryError

    check = selfcheck.Check("windows", 0.0, out_of_memory, lambda: None)
    assert selfcheck._finding(check) is None
    list(selfcheck._prove(loaded, "song", [check], dict))
    assert selfcheck.remembered(loaded) == [] and not loaded.distrusted


@pytest.mark.slow
def test_compiled_layers_that_differ_are_not_used(pipe_xl, tmp_path):
    transformer = pipe_xl.transformer
    right = song(pipe_xl, tmp_path)

    class Wrong:
        def pick(self, rows, tokens, takes):
            return lambda *given: song_attention.compute_layer(*given) * 1.1

    transformer.compiled = Wrong()
    try:
        assert not np.array_equal(song(pipe_xl, tmp_path), right)
        checks = {check.path: check for check in selfcheck.song_checks(pipe_xl, "cpu")}
        assert not finding_of(checks["compiled"]).agrees
        checks["compiled"].switch_off()
        assert transformer.compiled is None
        assert np.array_equal(song(pipe_xl, tmp_path), right)
    finally:
        del transformer.compiled


def with_compiled(pipe, layer) -> song_compilation.Compiled:
    """Let `layer` be what compiling makes of a layer of `pipe`."""
    pipe.transformer.compiled = song_compilation.Compiled(pipe.transformer)
    pipe.transformer.compiled._layer = layer
    return pipe.transformer.compiled


def compile_now(pipe) -> None:
    list(selfcheck._compile_now(pipe.transformer))


def louder(*given):
    return song_attention.compute_layer(*given) * 1.1


@pytest.mark.slow
def test_layers_that_are_compiled_after_a_song_are_treated_like_any_other_path(
    loaded, fresh, tiny, place, monkeypatch
):
    monkeypatch.setattr(selfcheck, "song_checks", lambda pipe, kind: [])
    with_compiled(fresh, song_attention.compute_layer)
    prove(loaded, fresh)
    compile_now(fresh)
    assert "- compiled layers: agrees" in selfcheck.report(loaded) and not loaded.distrusted
    assert _layer_of(fresh) is song_attention.compute_layer
    # Those of another length give something else.
    fresh.transformer.compiled._layer = louder
    fresh.transformer.compiled._compiled.clear()
    compile_now(fresh)
    assert list(loaded.distrusted) == ["compiled"] and fresh.transformer.compiled is None
    assert selfcheck.WORDS["compiled"] in selfcheck.summary(loaded)
    assert "- compiled layers: DISAGREES (0.1 apart" in selfcheck.report(loaded)
    assert '"compiled"' in place.read_text()
    # The next start does not compile them.
    loaded.distrusted.clear()
    again = models.build_pipeline(weights_in(tiny), CPU)
    with_compiled(again, louder)
    prove(loaded, again)
    assert again.transformer.compiled is None and list(loaded.distrusted) == ["compiled"]


def _layer_of(pipe):
    return pipe.transformer.compiled.pick(2, selfcheck._block_and_more(pipe.transformer), 1)


# --- the VAE ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tiles_are_compared_at_the_lengths_of_songs(tiny):
    fresh = models.build_pipeline(weights_in(tiny), CPU)
    lengths = {"decoder": [], "encoder": []}
    for name, found in lengths.items():
        getattr(fresh.vae, name).register_forward_hook(
            lambda module, inputs, output, found=found: found.append(inputs[0].shape[-1])
        )
    checks = {check.path: check for check in selfcheck.song_checks(fresh, "cpu")}
    finding = finding_of(checks["tiles"])
    assert finding.agrees and finding.difference > 0
    # The first tile of a song overlaps to one side.
    first, second, whole = lengths["decoder"]
    overlap = fresh.vae.tile_latent_overlap
    assert first == estimate.DECODED_FRAMES - overlap
    assert whole == estimate.DECODED_FRAMES + selfcheck.BEYOND_TILE
    assert first + second == whole + 2 * overlap
    hop = fresh.vae.hop_length
    first, second, whole = lengths["encoder"]
    assert first == estimate.ENCODED_SAMPLES - overlap * hop
    assert whole == estimate.ENCODED_SAMPLES + selfcheck.BEYOND_TILE * hop
    assert first + second == whole + 2 * overlap * hop
    assert fresh.vae.tile_latent_min_length == estimate.DECODED_FRAMES
    # A seam in what a source is encoded to.
    fresh.vae.tile_sample_overlap = 0
    assert not finding_of(checks["tiles"]).agrees
    checks["tiles"].switch_off()
    assert finding_of(checks["tiles"]).agrees


def test_where_tiles_have_to_be_short_the_processor_computes_the_long_one(fresh):
    song_vae.use_tiles(fresh.vae, short=True)
    made = []
    fresh.vae.decoder.register_forward_hook(lambda module, inputs, output: made.append(output))
    checks = {check.path: check for check in selfcheck.song_checks(fresh, "mps")}
    for path in ("tiles", "vae"):
        assert finding_of(checks[path]).agrees
    assert max(output.shape[-1] for output in made) <= song_vae.MPS_MOST_SAMPLES
    fresh.vae.tile_latent_overlap = 1
    assert not finding_of(checks["tiles"]).agrees


# --- plans, planner, cancel ---------------------------------------------------------------------------------------

# With a length it is all that a plan needs: codes alone are drawn.
KNOWN = {"bpm": 90, "key": "A minor", "time_signature": "4"}
SMALL = {"hidden_size": 64, "intermediate_size": 96}


@pytest.mark.slow
def test_a_mis_scaled_product_in_8_bits_takes_the_plan_away(
    loaded, tiny, right, monkeypatch, tmp_path
):
    assert all(
        finding_of(check).agrees
        for name in model_memory.TEXTS
        for check in selfcheck.plan_checks(CPU, name, SMALL)
    )
    scaled = model_offload._scaled

    def wrong(rows):
        codes, factor = scaled(rows)
        return codes, factor * 1.25

    monkeypatch.setattr(model_offload, "_scaled", wrong)
    (check,) = selfcheck.plan_checks(CPU, "fast8", SMALL)
    assert not finding_of(check).agrees
    monkeypatch.setattr(selfcheck, "plan_checks", lambda *given: [check])
    events = selfcheck.plan(loaded, "fast8")
    with pytest.raises(StopIteration) as end:
        while True:
            next(events)
    assert end.value.value is False
    monkeypatch.setattr(model_offload, "float8_is_supported", lambda: True)
    card = models.Device("cuda", "bfloat16", "bfloat16", "bfloat16", "")
    assert "fast8" in model_memory.plans_on(card)
    plans = model_memory.plans_on(card, loaded.distrusted)
    assert "fast8" not in plans
    # The plans that are left make the right song.
    for layout in {model_memory.layout_of("cuda", plan) for plan in plans if plan != "fp8"}:
        made = song(models.build_pipeline(weights_in(tiny), CPU, layout), tmp_path)
        assert made is not None and np.allclose(made, right, atol=NEAR)


def test_weights_that_8_bits_do_not_hold_take_the_plan_away(tiny, monkeypatch):
    stored = selfcheck._real_weights(tiny)
    assert len(stored) == 4
    (check,) = selfcheck.plan_checks(CPU, "fp8", SMALL, stored)
    # They are rounded: the bound is not met by comparing the same numbers.
    assert 0.01 < finding_of(check).difference < 0.05 < check.bound < 0.1
    # Spread by 0.001, most of them lie below the smallest number of 8 bits; the scales of rows bring them up.
    small = [each / each.std() / 1000 for each in stored]
    (check,) = selfcheck.plan_checks(CPU, "fp8", SMALL, small)
    assert 0.01 < finding_of(check).difference < 0.05
    scaled = model_offload._by_powers_of_two

    def without_scales(rows):
        return rows.to(torch.float8_e4m3fn), torch.ones(len(rows), 1)

    def twice_as_large(rows):
        codes, scale = scaled(rows)
        return codes, 2 * scale

    def of_another_row(rows):
        codes, scale = scaled(rows)
        return codes, scale.roll(1, dims=0)

    uneven = [each * torch.logspace(-1, 1, len(each))[:, None] for each in stored]
    for wrong, weights in (
        (without_scales, small),
        (twice_as_large, stored),
        (twice_as_large, []),
        (of_another_row, uneven),
    ):
        monkeypatch.setattr(model_offload, "_by_powers_of_two", wrong)
        (check,) = selfcheck.plan_checks(CPU, "fp8", SMALL, weights)
        assert not finding_of(check).agrees, wrong.__name__


def test_a_part_that_comes_back_changed_takes_the_plan_away(monkeypatch):
    (check,) = selfcheck.plan_checks(CPU, "offload", SMALL)
    assert finding_of(check).agrees
    bring = model_offload.Offload.bring

    def wrong(self, name):
        was_there = self.on_device == name
        bring(self, name)
        if not was_there:
            self._parts[name].weight.data *= 1.001

    monkeypatch.setattr(model_offload.Offload, "bring", wrong)
    assert not finding_of(check).agrees


@pytest.mark.slow
def test_a_vae_that_apples_gpu_computes_wrongly_works_on_the_processor(fresh, right, tmp_path):
    (check,) = (each for each in selfcheck.song_checks(fresh, "mps") if each.path == "vae")
    assert finding_of(check).agrees
    # The copy for the processor has no hooks. Like a known fault, it begins where a convolution's output is long.
    limit = song_vae.MPS_MOST_SAMPLES

    def late(module, inputs, output):
        return torch.cat([output[..., :limit], output[..., limit:].roll(1, -1)], dim=-1)

    fresh.vae.decoder.register_forward_hook(late)
    assert not np.allclose(song(fresh, tmp_path), right, atol=NEAR)
    assert not finding_of(check).agrees
    check.switch_off()
    assert np.allclose(song(fresh, tmp_path), right, atol=NEAR)


def test_a_distrusted_plan_is_passed_over():
    room = 10 * model_memory.GB
    sizes = model_memory.Sizes(11_500_000_000, 8_340_000_000, 1_220_000_000, 0, 0, 4_170_000_000)
    use = model_memory.Use(estimate.SongSize(60.0), loops=True)
    plans = [
        model_memory.choose("cuda", room, sizes, use, distrusted=names).plan
        for names in ((), ("offload",))
    ]
    assert plans == ["offload", "fp8"]
    assert model_memory.lower("cuda", "swap", ("offload",)) == "fp8"


def whole_plan(model: planning.Planner, request) -> tuple[dict, str, tuple[tuple[int, ...], ...]]:
    """Return a plan's metadata, its caption and all of its codes."""
    plan = list(planning.plan(model, request, (3,)))[-1]
    return plan.metadata, plan.caption, plan.codes


def right_plan(model: planning.Planner, request):
    """Return the whole plan of transformers' own layers, after a look at what the fast ones begin with."""
    model.model.plain_layers = True
    right = whole_plan(model, request)
    del model.model.plain_layers
    fast = whole_plan(model, request)
    # The same numbers in another order: a draw on the border of two codes may fall otherwise.
    assert (fast[0], fast[2][0][:10]) == (right[0], right[2][0][:10])
    return right


@pytest.mark.slow
def test_layers_of_the_planner_with_a_stale_cache_are_replaced(planner_model, monkeypatch):
    model = planner_model.model
    codes = planner_model.vocabulary.code_ids
    joined, check = selfcheck.planner_checks(model, codes)
    assert finding_of(joined).agrees and finding_of(check).agrees
    asked = parse_request("generate", {"prompt": "calm piano", "duration": 10, **KNOWN})
    right = right_plan(planner_model, asked)
    by_head = planner_layers._by_head

    def stale(part, rows):
        found = by_head(part, rows)
        return torch.zeros_like(found) if len(part) == rows else found

    monkeypatch.setattr(planner_layers, "_by_head", stale)
    assert not finding_of(check).agrees
    assert whole_plan(planner_model, asked) != right
    check.switch_off()
    try:
        assert whole_plan(planner_model, asked) == right
    finally:
        del model.plain_layers


@pytest.mark.slow
def test_weights_that_are_joined_in_another_order_are_found(planner_model, monkeypatch):
    model = planner_model.model
    joined, check = selfcheck.planner_checks(model, planner_model.vocabulary.code_ids)
    asked = parse_request("generate", {"prompt": "calm piano", "duration": 10, **KNOWN})
    right = right_plan(planner_model, asked)
    join = planner_layers.joined
    monkeypatch.setattr(planner_layers, "joined", lambda *parts: join(*parts).flip(0))
    assert not finding_of(joined).agrees and not finding_of(check).agrees
    assert whole_plan(planner_model, asked) != right
    joined.switch_off()
    try:
        assert whole_plan(planner_model, asked) == right
    finally:
        del model.plain_layers


@pytest.mark.slow
def test_recorded_steps_that_repeat_something_else_are_not_used(planner_model, monkeypatch):
    monkeypatch.setattr(planner_decoding, "RECORDED", {"cpu"})
    monkeypatch.setattr(planner_decoding, "warm_up", lambda work: work())
    monkeypatch.setattr(planner_decoding, "record", lambda work: work)
    *_, check = selfcheck.planner_checks(planner_model.model, planner_model.vocabulary.code_ids)
    assert check.path == "recorded" and finding_of(check).agrees
    asked = parse_request("generate", {"prompt": "calm piano", "duration": 10, **KNOWN})
    right = list(planning.plan(planner_model, asked, (3,)))[-1]
    monkeypatch.setattr(planner_decoding, "record", lambda work: lambda: None)
    assert not finding_of(check).agrees
    assert list(planning.plan(planner_model, asked, (3,)))[-1] != right
    assert "cpu" in planner_decoding.RECORDED
    check.switch_off()
    assert not planner_decoding.RECORDED
    assert list(planning.plan(planner_model, asked, (3,)))[-1] == right


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_recording_that_goes_on_beyond_its_stretch_is_found(monkeypatch, dtype):
    """What was recorded for one stretch of the cache does not see the codes of the next one."""
    monkeypatch.setattr(planner_decoding, "RECORDED", {"cpu"})
    monkeypatch.setattr(planner_decoding, "warm_up", lambda work: work())
    monkeypatch.setattr(planner_decoding, "record", Recording)
    weights = Weights("planner", PLANNER, "variable", "", "transformers", None, "planner")
    found = planning.load_planner(weights, CPU)
    if dtype == "bfloat16":
        # The processor has no product of half numbers that gives whole ones.
        monkeypatch.setattr(planner_layers.CachedLayers, "_single", single)
    found.model.to(getattr(torch, dtype))
    *_, check = selfcheck.planner_checks(found.model, found.vocabulary.code_ids)
    finding = finding_of(check)
    assert check.path == "recorded" and finding.difference == 0.0, finding
    monkeypatch.setattr(
        planner_decoding, "stretch_end", lambda position: 10 * planner_layers.STRETCH
    )
    finding = finding_of(check)
    assert not finding.agrees and finding.difference is not None, finding
    check.switch_off()
    assert not planner_decoding.RECORDED


def single(self, query, keys, values, mask):
    folded = query.reshape(len(keys), -1, self._size).float()
    shares = torch.baddbmm(mask, folded, keys.float(), alpha=self._size**-0.5).softmax(dim=-1)
    return torch.bmm(shares.to(keys.dtype), values.transpose(1, 2)).view(len(query), -1)


@pytest.mark.slow
def test_a_step_at_a_wrong_place_is_found_where_steps_are_recorded(planner_model, monkeypatch):
    _, check = selfcheck.planner_checks(planner_model.model, planner_model.vocabulary.code_ids)
    step = planner_layers.CachedLayers.step

    def early(self, tokens, position):
        return step(self, tokens, position.clamp_max(planner_layers.STRETCH - 1))

    monkeypatch.setattr(planner_layers.CachedLayers, "step", early)
    assert finding_of(check).agrees  # nothing uses it
    monkeypatch.setattr(planner_decoding, "RECORDED", {"cpu"})
    assert not finding_of(check).agrees
    monkeypatch.setattr(planner_layers.CachedLayers, "step", step)
    assert finding_of(check).agrees


@pytest.mark.slow
def test_memory_that_a_cancelled_song_keeps_is_reported(fresh, right, monkeypatch, tmp_path):
    kept = []
    monkeypatch.setattr(
        selfcheck, "_allocated", lambda pipe: 1000 + sum(each.nbytes for each in kept)
    )
    assert selfcheck._cancel(fresh) <= selfcheck.CANCEL_BOUND
    fresh.transformer.layers[0].register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    )
    assert selfcheck._cancel(fresh) > selfcheck.CANCEL_BOUND
    # It costs memory, and no song.
    made = song(fresh, tmp_path)
    assert made is not None and np.allclose(made, right, atol=NEAR)


@pytest.mark.slow
def test_a_cancelled_song_keeps_nothing_where_parts_are_offloaded(
    loaded, tiny, monkeypatch, tmp_path
):
    parts = models.build_pipeline(weights_in(tiny), CPU, models.Layout(in_parts=True))
    offload = model_offload.offload_of(parts)
    kept = []

    def allocated(pipe):
        there = offload._parts.get(offload.on_device)
        lying = sum(each.nbytes for each in there.parameters()) if there is not None else 0
        return lying + sum(each.nbytes for each in kept)

    monkeypatch.setattr(selfcheck, "_allocated", allocated)
    (check,) = (each for each in selfcheck.song_checks(parts, "cuda") if each.path == "cancel")
    selfcheck._decoded(parts, selfcheck._latents(parts, 16))  # the VAE is there
    assert finding_of(check).difference == 0.0
    parts.transformer.layers[0].register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    )
    list(selfcheck._prove(loaded, "song", [check], dict))
    sentence = selfcheck.summary(loaded)
    assert "cancelled song" in sentence and "Switched off" not in sentence


# --- constants ----------------------------------------------------------------------------------------------------


def test_the_measured_time_of_loading_replaces_the_counted_one(loaded, fresh, monkeypatch):
    monkeypatch.setattr(estimate, "CONSTANTS", dict(estimate.COUNTED))
    monkeypatch.setattr(selfcheck, "song_checks", lambda pipe, kind: [passed])
    passed = selfcheck.Check("windows", 0.0, lambda: 0.0, lambda: None)
    monkeypatch.setattr(loaded, "load_seconds", 7.0)
    monkeypatch.setattr(loaded.planner, "load_seconds", 4.0)
    work = estimate.Work("generate", duration=60.0, steps=50)
    counted = estimate.seconds_needed(work)
    prove(loaded, fresh)
    saved = estimate.COUNTED["cold_seconds"] - 11.0
    assert estimate.seconds_needed(work) == pytest.approx(counted - saved)
    # The main process of ZeroGPU reads what a worker has measured.
    estimate.CONSTANTS.update(estimate.COUNTED)
    selfcheck.use_remembered(loaded)
    assert estimate.CONSTANTS["cold_seconds"] == 11.0


def test_on_zerogpu_it_is_the_time_from_a_workers_fork_to_its_first_job(
    loaded, monkeypatch, tmp_path
):
    monkeypatch.setattr(selfcheck.bootstrap, "on_zerogpu", lambda: True)
    monkeypatch.setattr(gpu_zero, "_start", [])
    monkeypatch.setattr(gpu_zero, "_forked_at", [100.0])
    monkeypatch.setattr(gpu_zero.time, "time", lambda: 109.0)
    assert selfcheck.start_seconds(loaded) == 0  # no worker
    gpu_zero.Beat(tmp_path)
    gpu_zero.Beat(tmp_path)  # its next job finds it started
    assert selfcheck.start_seconds(loaded) == 9.0


def test_steps_decoding_and_encoding_are_timed_each_by_itself(fresh, monkeypatch):
    """The clock goes on by what works, not by how long this machine takes for it."""
    monkeypatch.setattr(estimate, "CONSTANTS", dict(estimate.COUNTED))
    monkeypatch.setitem(estimate.XL, "hidden_size", fresh.transformer.config.hidden_size)
    clock = [0.0]
    monkeypatch.setattr(selfcheck, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def step(transformer, inputs, output):
        clock[0] += 0.01 * len(transformer.layers)

    def decode(decoder, inputs, output):
        clock[0] += 0.002 * inputs[0].shape[-1]

    def encode(encoder, inputs, output):
        clock[0] += 0.2 + 0.01 * inputs[0].shape[-1] / fresh.sample_rate

    fresh.transformer.register_forward_hook(step)
    fresh.vae.decoder.register_forward_hook(decode)
    fresh.vae.encoder.register_forward_hook(encode)
    layers = len(fresh.transformer.layers)
    music = selfcheck._tokens(fresh.transformer) / estimate.TOKENS_PER_SECOND
    found = selfcheck._song_times(fresh, "a card")
    assert found == pytest.approx(
        {
            "tflop_per_second": 2 * estimate.forward_tflop(music) / (0.01 * layers),
            "decode_per_minute": 0.002 * fresh.latents_per_second * 60,
            "encode_seconds": 0.2,
            "encode_per_minute": 0.01 * 60,
        }
    )
    # Covers, extensions and edits are estimated with it; a song from words has no source.
    estimate.use_measured(found)
    cover = estimate.Work("cover", duration=90.0, steps=50, source=90.0)
    words = estimate.Work("generate", duration=90.0, steps=50)
    encoding = estimate.seconds_of_work(cover) - estimate.seconds_of_work(words)
    assert encoding == pytest.approx(0.2 + 0.9)
    # On a processor nobody counts seconds, and those of a small model say nothing about a large one.
    assert selfcheck._song_times(fresh, "cpu") == {}
    monkeypatch.undo()
    assert selfcheck._song_times(fresh, "a card") == {}


def test_on_zerogpu_the_checks_seconds_are_asked_for_until_they_are_remembered(loaded, monkeypatch):
    monkeypatch.setattr(estimate, "CONSTANTS", dict(estimate.COUNTED))
    monkeypatch.setattr(gpu_zero, "experience", estimate.Experience())
    due = selfcheck.due_seconds(loaded)
    assert due == selfcheck.ZEROGPU_SECONDS
    work = estimate.Work("generate", duration=240.0, steps=100, takes=2, guidance=7.0)
    assert gpu_zero.gpu_seconds(work, due) == gpu_zero.gpu_seconds(work) + due
    good = selfcheck.Check("windows", 0.0, lambda: 0.0, lambda: None)
    list(selfcheck._prove(loaded, "song", [good], lambda: {"cold_seconds": 11.0}))
    assert selfcheck.due_seconds(loaded) == 0


def test_measured_constants_replace_counted_ones_within_bounds(monkeypatch):
    monkeypatch.setattr(estimate, "CONSTANTS", dict(estimate.COUNTED))
    counted = estimate.COUNTED["decode_per_minute"]
    estimate.use_measured(
        {"decode_per_minute": 2 * counted, "margin": 0, "nothing": 1, "cold_seconds": "x"}
    )
    expected = {**estimate.COUNTED, "decode_per_minute": 2 * counted}
    assert expected == estimate.CONSTANTS
    estimate.use_measured({"decode_per_minute": 1000 * counted})
    assert estimate.CONSTANTS["decode_per_minute"] == 2 * counted
