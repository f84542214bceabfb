# What images of the TorchServe flavour start from: the site's base with Java, TorchServe and torch.
# All is fetched on the build server, so that nothing here needs a network; with CUDA's torch it serves GPUs, which
# the NVIDIA variables make visible inside.
ARG BASE
FROM ${BASE}
COPY --chown=0:0 java/ /
COPY --chown=0:0 python/ /opt/torchserve/
RUN python3 -c "import site; open(site.getsitepackages()[0] + '/torchserve.pth', 'w').write('/opt/torchserve\n')" \
 && python3 -c "import ts.model_service_worker, ts.torch_handler.base_handler" && java -version
ENV DYNABENCH_MODEL_SERVER=torchserve NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
