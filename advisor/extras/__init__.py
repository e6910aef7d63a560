"""Optional features: one folder each, with a file extra.py that says what the feature is and where
it acts (protocol.py). The rest of the package imports none of them: ground/extras.py lists them.

Folders named in ADVISE_METHODS add theirs from `extras/`.
"""

from __future__ import annotations

from advisor.ground.resources import method_roots

__path__ += [str(root / "extras") for root in method_roots()[1:] if (root / "extras").is_dir()]
