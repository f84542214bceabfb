"""In the style of dynalab's older template, with a task module of its own."""

from dynalab.handler.base_handler import ROOTPATH, BaseDynaHandler
from dynalab.tasks.nli import TaskIO

assert ROOTPATH.endswith("/home/model-server/code")


class Handler(BaseDynaHandler):
    def initialize(self, context):
        self.taskIO = TaskIO()
        self.initialized = True

    def postprocess(self, data):
        example = self._read_data(data)
        return [self.taskIO.sign_response({"id": example["uid"], "label": "entailed"}, example)]


_service = Handler()


def handle(data, context):
    if not _service.initialized:
        _service.initialize(context)
    return None if data is None else _service.postprocess(data)
