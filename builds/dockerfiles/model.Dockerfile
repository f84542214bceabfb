# A model image of either flavour: its base, our runtime and the user's packages, archive and project.
ARG BASE
FROM ${BASE}
COPY --chown=0:0 opt/ /opt/
COPY --chown=0:0 home/ /home/
ENV LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp USER=nobody
WORKDIR /tmp
EXPOSE 8080
USER 65534:65534
ENTRYPOINT ["python3", "/opt/dynabench/runtime/serve.py"]
CMD ["serve"]
