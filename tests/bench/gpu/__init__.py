"""`python -m tests.bench.gpu`: all of Thaw on one GPU, in one run of ten minutes.

Enter at `__main__`; each part is a function from `Sizes` to rows of bench.json.
`wheels.txt` lists what a bare machine with torch lacks, `page` renders docs/performance.md.
"""
