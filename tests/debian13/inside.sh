#!/usr/bin/env bash
# In Debian 13's root: the quick tests, the demo, a cell of each kind. See ./run.
set -euo pipefail
say() { echo "debian13: $(date +%T) $*"; }

# shellcheck disable=SC1091
. /etc/os-release
test "$VERSION_ID" = 13
say "$PRETTY_NAME, $(python3 --version), $(qemu-system-x86_64 --version | head -n 1)"

python3 -m venv .venv
.venv/bin/pip install -q --disable-pip-version-check --no-index --no-deps wheels/*.whl
touch .venv/.made # make finds it done

say "the tests that need no namespace"
make unit

say "the image, and the demo"
make demo

say "a cell of each kind"
.venv/bin/python -m pytest -q -p no:cacheprovider \
    'tests/vm/test_cell.py::test_what_is_refused_fails_fast_inside_the_guest[embedded]' \
    'tests/vm/test_cell.py::test_what_is_refused_fails_fast_inside_the_guest[namespace]' \
    tests/vm/test_cell.py::test_data_comes_through_the_tunnel_and_results_come_home \
    tests/vm/test_cell.py::test_a_tunnel_may_be_ipv6_within \
    tests/vm/test_cell.py::test_first_rogue_frame_of_a_compromised_guest_kills_it
