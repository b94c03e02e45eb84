"""``python -m winnow_nn``: the command, where the script ``winnow`` is not on the path or is another one."""

from winnow_nn import main

main()
