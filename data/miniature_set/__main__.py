"""`python -m data.miniature_set`."""

from data.miniature_set.build import main

main()
