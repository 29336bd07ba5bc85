"""Writers: a schedule, written out as one readable program."""
