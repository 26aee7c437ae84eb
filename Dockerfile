# corrflow's commands without a compiler: docker build --tag corrflow . ; docs/install.md has the use.
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN python -m venv /opt/corrflow && /opt/corrflow/bin/pip install --no-cache-dir -c /source/constraints.txt /source

FROM python:3.12-slim
# The libraries that OpenCV's wheel links to.
RUN apt-get update && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/corrflow /opt/corrflow
ENV PATH=/opt/corrflow/bin:$PATH
RUN useradd --create-home corrflow
USER corrflow
WORKDIR /videos
CMD ["corrflow-doctor"]
