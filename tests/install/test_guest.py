"""An installed wheel records, as root, with the distribution's bcc beside it: on Debian 13's own kernel, in the lab.

Boots a guest as root: python3 -m tests.vm setup (once), then `make test-install`.
"""

from __future__ import annotations

import ensurepip
import os
import shutil
from pathlib import Path

import pytest

from analyze.verify import verify
from collect.trace import open_trace
from tests.vm import shell

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.install,
    pytest.mark.skipif("DIRECTMAP_INSTALL" not in os.environ, reason="installs in a guest: make test-install"),
]

# No network in there: pip is the one that comes with Python, numpy and pyarrow are the userland's. Nothing else of the system's
# is on the path of the environment, so bcc has to be found where the distribution put it.
STEPS = """
set -e
python3 -m venv --without-pip /tmp/env
/tmp/env/bin/python /out/pip.whl/pip install --no-index --no-deps --quiet /out/directmap-*.whl
export PYTHONPATH=$(echo /usr/local/lib/python3.*/dist-packages)
cd /tmp
/tmp/env/bin/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("bcc") is not None)'
/tmp/env/bin/directmap-collect check >/out/check
/tmp/env/bin/directmap-collect record -o /tmp/trace -- sh -c 'for m in dummy loop tun; do modprobe $m; modprobe -r $m; done'
cp -r /tmp/trace /out/trace
"""


def test_an_installed_wheel_records_exactly_with_the_distributions_bcc(dist: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(dist[".whl"], tmp_path)
    shutil.copy(next(Path(ensurepip.__file__).parent.glob("_bundled/pip-*.whl")), tmp_path / "pip.whl")
    (tmp_path / "steps").write_text(STEPS)
    options = ["--kernel", "6.12", "--memory", "4G", "--timeout", "1500", "--out", str(tmp_path)]
    shell.run(
        ["python3", "-m", "tests.vm", "run", *options, "--", "sh", "/out/steps"], what="recording in a guest", cwd=ROOT
    )
    assert "/usr/lib/python3/dist-packages/bcc" in (tmp_path / "check").read_text()
    trace = open_trace(tmp_path / "trace")
    assert trace.manifest["complete"]
    found = verify(trace)
    assert found.exact
    names = trace.table("strings")["text"].to_pylist()
    assert {"dummy", "loop", "tun"} <= set(names)
