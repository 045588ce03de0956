"""Serves a trained model over HTTP, in the form of OpenAI's completions.

python -m flm_jax.serve --workdir=tales
python -m flm_jax.serve --workdir=W --steps=4 --warm=1,4 --max_batch=16 --port=8080
python -m flm_jax.serve --workdir=W --closed --rate=5 --max_texts=4
"""

from absl import flags

from flm_jax.build.load import load_model
from flm_jax.cli import sampling_flags
from flm_jax.cli.path_flags import DEFINE_path
from flm_jax.cli.run import no_arguments, run_cli
from flm_jax.core.errors import require
from flm_jax.core.extras import import_extra
from flm_jax.core.progress import Progress
from flm_jax.inference import engine
from flm_jax.inference.rows import RowSampler
from flm_jax.samplers.base import Steps, plain_steps, read_steps
from flm_jax.serving import server
from flm_jax.serving.completions import Served
from flm_jax.serving.limits import Limits

flags.adopt_module_key_flags(sampling_flags)
_WORKDIR = DEFINE_path(
    "workdir", "", "Workdir of the model, an exported folder, hf:OWNER/NAME, or tales."
)
_NAME = flags.DEFINE_string(
    "name", "", "Name of the model in requests; by default the last part of --workdir."
)
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to listen at; the default is for programs of this machine alone."
)
_PORT = flags.DEFINE_integer(
    "port", 8000, "Port to listen at; 0 for a free one.", lower_bound=0, upper_bound=65535
)
_STEPS = flags.DEFINE_string(
    "steps", "", "Step count of requests that give none; by default config.eval.sample_steps."
)
_WARM = flags.DEFINE_list(
    "warm",
    None,
    "Step counts to compile at the start, separated by commas; by default that of --steps. An empty"
    " list compiles nothing and takes one batch size.",
)
_CLOSED = flags.DEFINE_bool(
    "closed",
    False,
    "Refuse step counts outside --warm and changed settings of the sampler, which take a "
    "compilation each.",
)
_BATCH = flags.DEFINE_integer("max_batch", 8, "Largest number of texts generated at a time.")
_ANY_ROUNDING = flags.DEFINE_bool(
    "any_rounding",
    False,
    "Use all batch sizes, so that a text may depend on the load in rare ties of rounding.",
)
_PROGRAMS = flags.DEFINE_integer(
    "max_programs", 64, "Largest number of programs that are kept compiled."
)
_SHOW = flags.DEFINE_bool(
    "show_calls",
    True,
    "Send streamed requests the text of each network call, not the last one alone. JAX keeps such "
    "programs in no cache, so that each start compiles them.",
)
_DEFAULTS = Limits()
_BODY = flags.DEFINE_integer("max_body", _DEFAULTS.body, "Largest body of a request, in bytes.")
_PROMPT = flags.DEFINE_integer(
    "max_prompt", _DEFAULTS.prompt, "Largest number of characters of a prompt."
)
_TOKENS = flags.DEFINE_integer(
    "max_tokens", _DEFAULTS.tokens, "Largest max_tokens of a request; 0 for the model's length."
)
_TEXTS = flags.DEFINE_integer(
    "max_texts", _DEFAULTS.texts, "Largest number of texts of a request, prompts times n."
)
_CALLS = flags.DEFINE_integer(
    "max_steps", _DEFAULTS.steps, "Largest number of network calls of a text."
)
_WAITING = flags.DEFINE_integer(
    "max_waiting", _DEFAULTS.waiting, "Largest number of texts that wait; more get status 503."
)
_SECONDS = flags.DEFINE_float(
    "max_seconds", _DEFAULTS.seconds, "Seconds after which a request gets status 504."
)
_RATE = flags.DEFINE_float(
    "rate", _DEFAULTS.rate, "Requests of a client in a second, by its address; 0 for any number."
)
_BURST = flags.DEFINE_integer(
    "burst", _DEFAULTS.burst, "Number of requests that a client may make at once under --rate."
)
_CONNECTIONS = flags.DEFINE_integer("max_connections", 1000, "Largest number of connections.")
_LOG = flags.DEFINE_bool("log", False, "Log each request: its address, path and status.")


def _limits() -> Limits:
    return Limits(
        body=_BODY.value,
        prompt=_PROMPT.value,
        tokens=_TOKENS.value,
        texts=_TEXTS.value,
        steps=_CALLS.value,
        waiting=_WAITING.value,
        seconds=_SECONDS.value,
        rate=_RATE.value,
        burst=_BURST.value,
    )


def _served() -> tuple[Served, list[Steps]]:
    """Opens the model; returns what is served, and the step counts to compile."""
    model = load_model(_WORKDIR.value)
    length = model.net.max_length
    steps = read_steps(_STEPS.value or str(model.config["eval"]["sample_steps"]))
    warm = [steps] if _WARM.value is None else [read_steps(one) for one in _WARM.value if one]
    engine.check_request(model, [steps, *warm], 1, length)
    (steps,) = engine.step_counts(model, [steps], length)
    warm = engine.step_counts(model, warm, length) if warm else []
    require(
        not _CLOSED.value or steps in warm,
        f"got --closed with --steps={plain_steps(steps)}, which --warm has not; add it there.",
    )
    name = _NAME.value or _WORKDIR.value.rstrip("/").rpartition("/")[2]
    sampler = sampling_flags.sampler_of(model.config)
    fixed = tuple(warm) if _CLOSED.value else None
    return Served(model, name, sampler, steps, fixed), warm


def main(argv) -> None:
    no_arguments(argv)
    require(bool(_WORKDIR.value), "no --workdir; expected that of a training run, or tales.")
    limits, sizes = _limits(), server.batch_sizes(_BATCH.value)
    for package in ("uvicorn", "starlette"):
        import_extra(package, "serve", "flm serve")
    address = server.Address(_HOST.value, _PORT.value)
    with server.quiet_stop():
        listening = server.open_socket(address)
        served, warm = _served()
        sampler = RowSampler(served.model, _PROGRAMS.value, _SHOW.value)
        if not warm:
            alike = sizes[-1:]
        else:
            with Progress("programs", len(warm) * len(sizes)) as bar:
                alike = server.warm_up(sampler, served, warm, sizes, bar.done)
        if _ANY_ROUNDING.value:
            alike = sizes
    said = f"texts at a time: {', '.join(map(str, alike))}"
    if left := [size for size in sizes if size not in alike]:
        said += f" (not {', '.join(map(str, left))}, which may round otherwise)"
    host, port = listening.getsockname()[:2]
    place = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def ready() -> None:
        print(f"{served.name} is served at {place}/v1/completions; {said}", flush=True)

    done = server.serve(
        served,
        sampler,
        alike,
        limits,
        listening,
        connections=_CONNECTIONS.value,
        log=_LOG.value,
        ready=ready,
    )
    print(f"stopped: {done.answered} requests answered, {done.worker.rows_done} texts", flush=True)


if __name__ == "__main__":
    run_cli(main)
