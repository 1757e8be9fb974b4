# make demo: everything from nothing to the five scenarios. make test: everything from nothing to a verdict.
SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
PACKAGES := qemu-system-x86 bubblewrap libseccomp2 mmdebstrap erofs-utils e2fsprogs uidmap cpio kmod
PACKAGES += debian-archive-keyring lz4 xz-utils zstd shellcheck python3-venv
# The gateway's engines with nftables; and what the tests and the bench run in namespaces of theirs.
PACKAGES += iproute2 nftables wireguard-go wireguard-tools dnsmasq-base
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# Modules are compiled once, tests too, not at each start of a program: 10 s for each of pytest's.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test tests fast machines debian13 compiled quick lint bench unit mutation image system clean

# Debian packages, only where one is missing.
system:
	@missing=$$(for p in $(PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	if [ -n "$$missing" ]; then echo "installing Debian packages:" $$missing; \
	$(SUDO) apt-get update -qq && \
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi

$(VENV)/.made: pyproject.toml requirements.lock
	python3 -m venv $(VENV)
	$(PY) -m pip install -q --only-binary mitmproxy_rs -c requirements.lock -e '.[dev]'
	touch $@

compiled: $(VENV)/.made
	@$(PY) -m compileall -q src

image: system compiled
	$(VENV)/bin/wgcell image build

demo: image
	$(PY) demo/play.py

PYTEST := $(PY) -m pytest -q
# One by one as a worker is free, in the order of tests/conftest.py: the long ones first.
ONE_BY_ONE := --dist load --maxschedchunk=1

# Whatever needs no image of this machine's runs while that is built. What measures time runs when
# nothing else does.
test: system compiled
	SUDO=$(SUDO) tests/beside 'image machines' 'lint debian13 fast'
	$(PYTEST) -m alone

tests: image
	SUDO=$(SUDO) tests/beside machines fast
	$(PYTEST) -m alone

fast: image
	$(PYTEST) -n 2 --dist worksteal -m 'not vm and not alone'

machines: image
	$(PYTEST) -n 3 $(ONE_BY_ONE) -m 'vm and not alone'

# In a Debian 13 root: the quick tests, the demo, one cell of each kind. Needs root: mounts.
debian13: system $(VENV)/.made
	$(SUDO) tests/debian13/run $(PACKAGES)

# For whoever changes a parser: pip alone, no root, no namespaces, no VM, no other process. Three
# workers for two processors, for some tests wait.
quick: compiled
	$(PYTEST) -n 3 --dist worksteal -m 'not vm and not namespaces and not alone and not process'

unit: system compiled
	$(PYTEST) -n 2 --dist worksteal -m 'not vm and not namespaces and not alone'

lint: $(VENV)/.made
	$(VENV)/bin/ruff check src tests demo bench fuzz examples
	$(VENV)/bin/ruff format --check src tests demo bench fuzz examples
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy examples
	$(VENV)/bin/lint-imports --no-cache
	shellcheck .ci/run tests/beside tests/debian13/run tests/debian13/inside
	shellcheck -s sh $(addprefix src/wgcell/guest/,init collect)

bench: image
	$(PY) bench/relay.py
	$(PY) bench/path.py
	$(PY) bench/many.py
	$(PY) bench/start.py
	$(PY) bench/streams.py
	$(PY) bench/kill.py
	$(PY) bench/gateway.py

# A copy is what is broken; whoever survives is printed. An hour.
mutation: $(VENV)/.made
	$(PY) -m pip install -q -e '.[mutation]'
	rm -rf build/mutation && git clone -q . build/mutation
	cd build/mutation && export PYTHONPATH=$$PWD/src:$$PWD PATH=$(abspath $(VENV))/bin:$$PATH && \
	for config in relay channel; do \
	cosmic-ray init fuzz/$$config.toml $$config.sqlite && \
	cr-filter-operators $$config.sqlite fuzz/$$config.toml && \
	cosmic-ray exec fuzz/$$config.toml $$config.sqlite && \
	cr-report --surviving-only --show-diff $$config.sqlite || exit 1; done

clean:
	rm -rf $(VENV)
