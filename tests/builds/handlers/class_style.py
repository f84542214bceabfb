"""A TorchServe handler without a module-level `handle`."""

from ts.torch_handler.base_handler import BaseHandler


class Labeller(BaseHandler):
    def initialize(self, context):
        self.label = context.manifest["model"]["modelName"]
        self.initialized = True

    def preprocess(self, data):
        return data[0]["body"]

    def inference(self, example):
        return {"id": example["uid"], "label": self.label if self.initialized else "not initialised"}

    def postprocess(self, answer):
        return [answer]
