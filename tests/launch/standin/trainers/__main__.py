"""The entry of the stand-in: it knows the objectives sft and dpo.

With STAND_IN=recipe-WHERE it is the real one, with a stand-in for the recipe alone.
"""

import os
import runpy

import trainers
from trainers.sft import main

if os.environ.get("STAND_IN", "").startswith("recipe-"):
    runpy.run_path(f"{trainers.__path__[-1]}/__main__.py", run_name="__main__")
main()
