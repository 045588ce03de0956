"""The server's application in this process, with a worker of its own."""

import asyncio

from flm_jax.inference.language_model import LanguageModel
from flm_jax.serving.batches import Worker
from flm_jax.serving.completions import Completions, Served
from flm_jax.serving.http import make_app
from flm_jax.serving.limits import Limits
from helpers.serving import call

PATH = "/v1/completions"


class Server:
    """The application, what it is made of, and calls of it."""

    def __init__(self, model, programs, sizes, limits=None, hosts=("localhost",), **offered):
        self.alone = LanguageModel(model)
        self.worker = Worker(programs, sizes, (limits or Limits()).waiting)
        served = Served(model, "tiny", self.alone.sampler, offered.pop("steps", 1), **offered)
        self.completions = Completions(served, self.worker, limits or Limits())
        self.app = make_app(self.completions, hosts)

    def together(self, *bodies):
        """Answers of requests that are sent at once."""

        async def run():
            return await asyncio.gather(*(call(self.app, "POST", PATH, body) for body in bodies))

        return asyncio.run(run())

    def post(self, **body):
        return self.together(body)[0]

    def get(self, path, method="GET", **more):
        return asyncio.run(call(self.app, method, path, b"", **more))
