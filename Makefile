# Each target is one line where it can be. Two words for newcomers: demo and check.
export CGO_ENABLED = 0
GO ?= go

mk: ## bin/mk, the static binary
	GO='$(GO)' sh .ci/build -o bin/mk
demo: ## build mk, an example image, and run it, not as root
	sh .ci/demo
check: ## install what tests need, then lint and test
	sh .ci/check $(GOTESTFLAGS)
test: ## the tests, as whoever you are
	"$(GO)" test -timeout 30m ./...
test-vm: ## limits, and mk at all, on Debian's kernel in an emulated machine
	sh .ci/kernel && "$(GO)" test -count=1 -run 'TestVM$$' -v ./cmd/mk
race: ## the tests with the race detector, which wants cgo
	CGO_ENABLED=1 "$(GO)" test -timeout 30m -race ./...
fuzz: ## each fuzz test for FUZZTIME
	sh .ci/fuzz $(or $(FUZZTIME),10s)
lint: ## gofmt, go vet, and the house's own rules
	sh .ci/lint
size: ## the binary's size, of at most 15 MB; of a larger one, what it is made of
	sh .ci/size
bench: mk ## mk beside floors and peers (bench/README.md)
	sh .ci/bench
examples: ## build and run every example
	"$(GO)" test -count=1 -run TestExamples -v ./cmd/mk
verify: ## build every example twice: each has to be the same to the byte
	MK_TEST_VERIFY=1 "$(GO)" test -count=1 -run TestExamples -v ./cmd/mk
clean: ## bin and .cache
	rm -rf bin .cache
help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

.PHONY: mk demo check test test-vm race fuzz lint size bench examples verify clean help
