# Each target creates the environment it needs in .venv once.
# constraints.txt pins torch, to a version with a small CPU build, and the site's builder.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check docs format dist bench proto clean

demo: $(VENV)/.demo
	$(BIN)/ebjr demo

# One worker more than cores, since many tests wait. Browser and Ray tests run last: they need the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder
CORES  := $$(nproc 2>/dev/null || echo 2)

# Compiled first, for the many processes that tests start: containers often forbid to write bytecode.
# The last run reads only its own files, because importing all others takes half a minute.
test: $(VENV)/.dev $(VENV)/.system $(VENV)/.kserve
	$(BIN)/python -m compileall -q src
	$(PYTEST) -n $$(($(CORES) + 1)) -m 'not (ray or browser)'
	$(PYTEST) -n 2 -m 'ray or browser' $$(grep -rlE 'mark\.(ray|browser)' tests --include='test_*.py')

check: $(VENV)/.dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m docs.make.prose

# The site opens from disk: build/site/index.html.
docs: $(VENV)/.docs
	$(BIN)/python -m docs.make
	$(BIN)/zensical build --strict --clean
	$(BIN)/python -m docs.make.check

format: $(VENV)/.dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# The release check; EXTRAS="onnx serve" limits it to these.
dist: $(VENV)/.dist
	$(VENV)/dist/bin/python tools/dist.py $(EXTRAS)

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.joint_loop
	$(BIN)/python -m benchmarks.export
	$(BIN)/python -m benchmarks.curve
	$(BIN)/python -m benchmarks.calibration
	$(BIN)/python -m benchmarks.startup

# gRPC's messages. The compiler has its own environment, because it needs another protobuf.
proto:
	$(PYTHON) -m venv $(VENV)/proto
	$(VENV)/proto/bin/python -m pip install --quiet --disable-pip-version-check grpcio-tools
	cd src/ebjr/serving && $(CURDIR)/$(VENV)/proto/bin/python -m grpc_tools.protoc -I. \
	  --descriptor_set_out=open_inference.binpb open_inference.proto

clean:
	rm -rf $(VENV) build ebjr-demo

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[onnx,learned]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.demo $(VENV)/.docs

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[docs]'
	@touch $@

$(VENV)/.dist: | $(BIN)/python
	$(PYTHON) -m venv $(VENV)/dist
	$(VENV)/dist/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip build hatchling twine
	@touch $@

# Tests use Debian's Chromium and Prometheus where they can be installed. Two Prometheus programs are
# copied out of the package, which would start a server.
$(VENV)/.system: Makefile | $(BIN)/python
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq; fi
	@command -v chromium >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; \
	  else echo "no chromium here: browser tests are skipped"; fi; }
	@command -v promtool >/dev/null || [ -x $(BIN)/promtool ] || { \
	  rm -rf $(VENV)/deb && mkdir $(VENV)/deb && cd $(VENV)/deb && apt-get download -qq prometheus 2>/dev/null && \
	  dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin && \
	  mv usr/bin/prometheus usr/bin/promtool ../bin && cd .. && rm -rf deb; } || \
	  echo "no promtool here: tests of the alerts are skipped"
	@touch $@

# KServe's client needs other versions than ours, so it has its own environment.
$(VENV)/.kserve: | $(BIN)/python
	@$(PYTHON) -m venv $(VENV)/kserve && \
	  $(VENV)/kserve/bin/python -m pip install --quiet --disable-pip-version-check 'kserve>=0.15' || { \
	  rm -rf $(VENV)/kserve; echo "no kserve here: tests of its client are skipped"; }
	@touch $@
