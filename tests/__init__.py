"""The tests; a package so that they share elfwriter, asm and conftest."""
