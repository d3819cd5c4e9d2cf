# Run `make` alone to see what there is.

MINORS  ?= 2.2 2.3 3.0 3.1 3.2 3.3 3.4 3.5 3.6 3.7
BIN     ?= bin
ETCDS   := $(BIN)/etcd
VERSION ?= $(shell sed -n 's/^const version = "\(.*\)"/\1/p' cmd/etcd-migrate/main.go)

# What is built is built by the Go that go.mod names, whatever Go is at hand: the same bytes everywhere, and none of the known
# holes of an older standard library in them. `make GOTOOLCHAIN=local …` takes the one at hand.
export GOTOOLCHAIN := $(shell sed -n 's/^toolchain //p' go.mod)

# The race detector needs a C compiler; without one the tests run without it, and say so.
RACE := $(if $(shell command -v $(firstword $(shell go env CC))),-race)

TOOL := go tool -modfile=.tools/go.mod

.DEFAULT_GOAL := help
.PHONY: help build binaries demo test lint vuln sbom bench matrix testdata crash ha damage fuzz image test-image clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  MINORS="3.4 3.5 3.6" cuts `make binaries` short; the default is all from 2.2 to 3.7.'

build: ## build bin/etcd-migrate
	CGO_ENABLED=0 GOFLAGS= go build -trimpath -buildvcs=false -ldflags='-s -w -buildid=' -o $(BIN)/etcd-migrate ./cmd/etcd-migrate

binaries: ## build etcd, etcdctl and etcdutl of every minor into bin/etcd (about five minutes the first time)
	@for minor in $(MINORS); do binaries/etcd/build.sh $$minor $(ETCDS) || exit; done

demo: build binaries ## bring a real etcd 2.2 data dir to the newest etcd and show that nothing is lost
	@go run ./testdata/demo $(BIN)

# One package at a time: each starts several etcds at once, and clusters of them that must not lose each other.
test: build binaries ## run all tests: unit tests, and integration tests with real etcds of every minor (LONG=1: and 20,000 writes)
	go vet ./...
	$(if $(RACE),,@echo 'no C compiler found: the tests run without the race detector')
	$(if $(LONG),ETCD_MIGRATE_LONG=1) go test $(RACE) -p 1 -timeout 60m ./...

lint: ## run golangci-lint, pinned in .tools/go.mod
	$(TOOL) golangci-lint run

vuln: ## look for known vulnerabilities in what is linked in (VULNDB=file:///DIR: in a copy of the Go vulnerability database)
	$(TOOL) govulncheck $(if $(VULNDB),-db $(VULNDB)) ./...

sbom: build binaries ## write bin/sbom.cdx.json, the bill of materials of all programs; `make image` writes the image's
	@go run -C image/sbom . -version $(VERSION) -name etcd-migrate $(abspath $(BIN))/etcd-migrate $(abspath $(ETCDS)) > $(BIN)/sbom.cdx.json

bench: build binaries ## measure against the old way, as ratios in one run
	@go run ./testdata/bench $(BENCH) $(BIN)

matrix: build binaries ## migrate between all pairs of the minors, up and down; bin/matrix.html shows it (two minutes)
	@$(BIN)/etcd-migrate matrix --bin-dir $(ETCDS) --strict --html $(BIN)/matrix.html --junit $(BIN)/matrix.xml $(MATRIX)

testdata: binaries ## make the archives of real data dirs in testdata/golden anew
	@go run ./testdata/golden $(ETCDS) testdata/golden

crash: build binaries ## kill it before every change, let disks and volumes fail, and count what is lost (20 minutes)
	ETCD_MIGRATE_KILLS=100 go test -run TestKilled -count=1 -timeout 10m ./migrate/convert ./migrate/downgrade
	ETCD_MIGRATE_CRASH=all ETCD_MIGRATE_KILLS=12 go test -run 'TestWriteOrder|TestKilled|TestTroubleAfterKill|TestFailingDisk|TestVolume' -parallel 3 -count=1 -timeout 60m -v ./cmd/etcd-migrate

damage: binaries ## damage real data dirs in thousands of ways (DAMAGE of each, default 3000), and see that none is taken for good
	ETCD_MIGRATE_DAMAGE=$(or $(DAMAGE),3000) go test -run 'TestDamage' -count=1 -timeout 60m -v ./migrate

image: ## build the container image with podman (MINORS, TARGET, ARCH and IMAGE choose)
	+@image/tools.sh
	+@image/build.sh

test-image: build binaries ## run the container tests (as root, with podman)
	@image/tools.sh
	go test -tags image -count=1 -timeout 40m -v ./image

ha: build binaries ## migrate clusters of three and five members up and down, with members killed three times each
	ETCD_MIGRATE_HA=1 ETCD_MIGRATE_KILLS=3 go test -run 'TestCluster' -count=1 -timeout 30m -v ./cmd/etcd-migrate

fuzz: ## fuzz every parser, FUZZTIME (default 20s) each
	@.ci/fuzz $(or $(FUZZTIME),20s)

clean: ## remove what has been built
	rm -rf $(BIN)
