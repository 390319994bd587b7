"""The table of truth: every system trained alike on one frozen extractor, scored alike, beside what a trivial method reaches."""
