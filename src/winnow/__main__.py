import os
import sys

# ``python -m`` puts the current folder first: a file there called numpy.py or yaml.py would be run in place of the package.
# What a person names as package.module:function is looked for in the current folder too, but last (winnow/importing.py).
if not getattr(sys.flags, "safe_path", False) and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

from winnow_nn import main  # checks that the package is ours before any more of it is imported

main()
