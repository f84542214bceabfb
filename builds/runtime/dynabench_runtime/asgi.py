"""Our own model server: the model loads, while `/ping` already answers, and runs in this process."""

from dynabench_runtime.handler import load_handler
from dynabench_runtime.image import Image
from dynabench_runtime.listening import serve
from dynabench_runtime.server import ModelServer

if __name__ == "__main__":
    serve(ModelServer(Image.here(), load_handler))
