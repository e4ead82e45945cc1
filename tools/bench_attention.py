"""One step of the song model with each way to attend: python -m tools.bench_attention

Builds a transformer with XL's dimensions and random weights, so that no download is needed, and times one guided step
(a batch of two) of a song. Prints milliseconds, peak memory, and how far the result is from the stock one; a way that
the card or an absent package does not allow is listed with the reason. Numbers go into docs/performance.md.
"""

import argparse
import statistics
import time

import torch

import attention

XL = {
    **{"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 32, "num_attention_heads": 32},
    **{"num_key_value_heads": 8, "head_dim": 128, "encoder_hidden_size": 2048},
}
SMALL = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 16, "encoder_hidden_size": 64},
}
CONDITION_TOKENS, FRAMES_PER_SECOND = 600, 25
WAYS = (
    "stock",
    "repeat",
    "_native_efficient",
    "_native_cudnn",
    "_native_flash",
    "_native_math",
    "flex",
    "flash",
    "sage",
)


def main() -> None:
    """Print a row for each way to attend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ways", nargs="*", metavar="way", help=f"of {', '.join(WAYS)}; all of them by default")
    parser.add_argument("--seconds", type=float, default=240, help="length of the song")
    parser.add_argument("--takes", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a transformer that a processor can carry")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    transformer = build(SMALL if arguments.small else XL, device, dtype)
    inputs = step_inputs(transformer, arguments.seconds, 2 * arguments.takes, device, dtype)
    name = torch.cuda.get_device_name(0) if device == "cuda" else device
    print(f"{name}, torch {torch.__version__}, {dtype}, {arguments.seconds:g} s, batch {2 * arguments.takes}")
    print(f"{'way':<20}{'ms a step':>10}{'peak GB':>9}{'difference':>12}")
    reference = None
    for way in arguments.ways or WAYS:
        try:
            attention.use(transformer, way)
            result, milliseconds, peak = measure(transformer, inputs, device, arguments.runs)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(f"{way:<20}  not here: {reason[:90]}", flush=True)
            continue
        reference = result if reference is None else reference
        far = float((result - reference).abs().max() / reference.abs().max())
        print(f"{way:<20}{milliseconds:>10.1f}{peak:>9.2f}{far:>12.1e}", flush=True)


def build(dimensions: dict, device: str, dtype: torch.dtype) -> torch.nn.Module:
    """Return a transformer with random weights, made on the device itself."""
    from diffusers import AceStepTransformer1DModel

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            transformer = AceStepTransformer1DModel(**dimensions)
    finally:
        torch.set_default_dtype(before)
    return transformer.eval().requires_grad_(False)


def step_inputs(transformer, seconds: float, batch: int, device: str, dtype: torch.dtype) -> dict:
    """Return what the loop gives the transformer in one step: noise [batch, frames, C] with contexts of its length."""
    frames, config = round(seconds * FRAMES_PER_SECOND), transformer.config

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    time_ = torch.full((batch,), 0.5, device=device, dtype=dtype)
    return {
        "hidden_states": noise(batch, frames, config.audio_acoustic_hidden_dim),
        "timestep": time_,
        "timestep_r": time_,
        "encoder_hidden_states": noise(batch, CONDITION_TOKENS, config.encoder_hidden_size),
        "context_latents": noise(batch, frames, 2 * config.audio_acoustic_hidden_dim),
        "return_dict": False,
    }


def measure(transformer, inputs: dict, device: str, runs: int) -> tuple[torch.Tensor, float, float]:
    """Return the result in float32, the median milliseconds of a step, and the peak of the card's memory in GB."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(runs + 1):
        _wait(device)
        started = time.perf_counter()
        with torch.no_grad():
            result = transformer(**inputs)[0]
        _wait(device)
        times.append((time.perf_counter() - started) * 1000)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
    # The first run warms up.
    return result.float().cpu(), statistics.median(times[1:]), peak


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


if __name__ == "__main__":
    main()
