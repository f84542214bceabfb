"""In the style of dynalab's newer template: entailed if every word of the hypothesis is in the context."""

import sys
from pathlib import Path

from dynalab.handler.base_handler import BaseDynaHandler
from dynalab.tasks.task_io import ROOTPATH, TaskIO

sys.path.append(ROOTPATH)
from words import words_of  # noqa: E402


class Handler(BaseDynaHandler):
    def initialize(self, context):
        model_pt_path, model_file_dir, device_str = self._handler_initialize(context)
        assert Path(model_pt_path).read_text() and Path(model_file_dir) == Path.cwd() and device_str == "cpu"
        self.taskIO = TaskIO("nli")
        self.initialized = True

    def preprocess(self, data):
        example = self._read_data(data)
        return words_of(example["context"]), words_of(example["hypothesis"])

    def inference(self, input_data):
        context, hypothesis = input_data
        return "entailed" if hypothesis <= context else "neutral"

    def postprocess(self, inference_output, data):
        example = self._read_data(data)
        response = {"id": example["uid"], "label": inference_output}
        self.taskIO.sign_response(response, example)
        self.taskIO.verify_response(response, example)
        return [response]


_service = Handler()


def handle(data, context):
    if not _service.initialized:
        _service.initialize(context)
    if data is None:
        return None
    print("this must not become part of an answer")  # noqa: T201
    return _service.postprocess(_service.inference(_service.preprocess(data)), data)
