# Needs Python >= 3.11 and make. First `make demo` and `make test`; while working, `make check`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
QUICK := not slow and not gpu and not faults
# Temporary files of the tests lie in memory where 4 GB are free, which makes them a tenth faster.
MEMORY := $(shell test -w /dev/shm && test $$(df -Pk /dev/shm | awk 'NR == 2 {print $$4}') -gt 4000000 && \
	echo PYTEST_DEBUG_TEMPROOT=/dev/shm)
# Otherwise hundreds of processes of the tests and of Ray would each compile every module again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo proof proof-quick proof/store table3 check test test-slow test-faults bench-store bench-encoders bench-extract \
	bench-remote bench-scheduler bench-metrics bench-train bench-sweep bench-busy bench-heads bench-predict bench-view bench-cluster \
	check-gpu lint setup clean

setup: $(STAMP)

# torch first and in its exact version: torchvision would install the newest, with several GB of CUDA libraries. A build (CPU or
# CUDA) that is already in .venv is kept.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "refavs needs Python >= 3.11, found " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# The whole chain on synthetic clips: videos and sound -> features in a Zarr store -> a sweep under Ray -> MLflow.
# Every step resumes, and says so if nothing is left to do.
demo: setup
	$(BIN)/refavs-synth demo/bench --clips 240 --seed 0
	$(BIN)/refavs-extract demo/bench demo/store --preset tiny
	$(BIN)/refavs-extract demo/bench/videos demo/videos-store --preset tiny
	$(BIN)/refavs-sweep smoke --store demo/store --out demo/smoke
	$(BIN)/refavs-report demo/smoke

# The paper's claims on synthetic clips, where the cue each expression needs is known: 50 trials, 2.5 hours on two processors.
# The same command resumes. The quick form has 4 trials, 8 minutes.
proof: proof/store
	$(BIN)/refavs-sweep proof --store proof/store --out proof/sweep --fuse 4
	$(BIN)/refavs-report proof/sweep
	$(BIN)/python tests/benchmarks/proof_accuracy.py proof/sweep

proof-quick: proof/store
	$(BIN)/refavs-sweep proof_quick --store proof/store --out proof/quick --fuse 2
	$(BIN)/refavs-report proof/quick

# The paper's Table 3 with small heads: a search for the learning rates, then EEMC and five baselines, alone and extended, with
# three seeds: about 4 hours of one processor, beside other work. The same command resumes.
table3: proof/store
	$(BIN)/refavs-sweep table3_tiny_rates --store proof/store --out proof/rates
	$(BIN)/refavs-sweep table3_tiny --store proof/store --out proof/table3
	$(BIN)/refavs-report proof/table3 --published --reference eemc

proof/store: setup
	$(BIN)/refavs-synth proof/bench --clips 1200 --seed 0 --no-videos
	$(BIN)/refavs-extract proof/bench proof/store --preset tiny

# Run it after every change: lint, types, and every test that starts no process and takes
# less than about half a second of processor time.
check: setup
	$(MAKE) --no-print-directory lint & lint=$$!; \
	$(MEMORY) $(BIN)/python -m pytest -q -n 2 --dist loadfile -m 'not process and not ray and not long and $(QUICK)' tests; tests=$$?; \
	wait $$lint && exit $$tests

# Node's default of 16 MB for young objects spends a fifth of the time on collecting garbage.
lint: setup
	$(BIN)/ruff check .
	NODE_OPTIONS=--max-semi-space-size=128 $(BIN)/pyright

# Four processes, as many tests wait for other processes to start, die or time out.
test: setup
	$(MEMORY) $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m '$(QUICK)' tests

# If ffmpeg is installed (apt-get install ffmpeg), every film of the tests is compared with its output, second by second.
test-slow: setup
	$(BIN)/python -m pytest -m slow tests

# The full fault tests; `make test` runs a small form of them: kills, flipped bits, full disks, lost nodes, bad media.
test-faults: setup
	$(BIN)/python -m pytest -m faults tests

# Each prints tables of ratios from one run; run nothing else meanwhile.
bench-store bench-extract bench-scheduler bench-metrics bench-train bench-busy bench-sweep bench-heads bench-view: setup
	$(BIN)/python tests/benchmarks/$(subst -,_,$@).py

bench-encoders: setup
	$(BIN)/python tests/benchmarks/bench_encoders.py
	$(BIN)/python tests/benchmarks/bench_dtypes.py

# RUN=<a trial of `make proof`> adds the video of 90 s whose sounding object changes.
# Its threads wait for each other as those of the command do.
bench-predict: setup
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python tests/benchmarks/bench_predict.py $(if $(RUN),--run $(RUN))

bench-remote: setup
	$(BIN)/python tests/benchmarks/bench_remote.py
	$(BIN)/python tests/benchmarks/bench_shared.py

# As root: three hosts are namespaces of this machine.
bench-cluster: setup
	PYTHONPATH=. $(BIN)/python tests/benchmarks/bench_cluster.py

# On a machine with a GPU, in under 8 minutes. Without network: WHEELS=FOLDER, filled elsewhere by infra/gpu-carry.sh, and
# PYTHON=an interpreter with torch for CUDA.
ifdef WHEELS
check-gpu:
	$(PYTHON) -m pip install --quiet --no-index --no-deps --upgrade --target $(WHEELS)/site $(WHEELS)/*.whl
	PYTHONPATH=.:$(WHEELS)/site $(PYTHON) tests/benchmarks/check_gpu.py
else
check-gpu: setup
	$(BIN)/python tests/benchmarks/check_gpu.py
endif

clean:
	rm -rf demo .pytest_cache .ruff_cache .hypothesis
