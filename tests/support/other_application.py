"""Somebody else's Serve application on a shared cluster.

``python -m tests.support.other_application ADDRESS PORT ROUTE`` deploys it there, declared as `serve deploy` does.
"""

import sys
import time

import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

NAME = "others"


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Others:
    def __init__(self) -> None:
        self._started = time.time()

    def __call__(self, request: object) -> float:
        return self._started  # who answers otherwise has been replaced


application = Others.bind()


def main(address: str, port: str, route: str) -> None:
    ray.init(address=address, log_to_driver=False)
    serve.start(http_options={"port": int(port)})
    declared = {"name": NAME, "route_prefix": route, "import_path": "tests.support.other_application:application"}
    _get_global_client().deploy_apps(ServeDeploySchema(applications=[declared]), _blocking=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
