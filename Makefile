# Two commands do everything: `make demo` and `make test`. Both install what they need (Debian packages; as root), or say
# what to install.

CARGO ?= cargo
PREFIX ?= /usr
export CARGO

.PHONY: demo test unit testbed soak asan valgrind leaks fuzz miri bench book lint fmt install install-c install-programs install-qube deb packages publish-check clean toolchain

demo: toolchain
	.ci/deps
	$(CARGO) run --release --quiet -p testbed -- demo

# `make packages`, which wants root and Debian's mirror for a bare Debian, is run by itself; a check of the testbed installs the same
# packages in dom0.
test: lint unit asan valgrind testbed

lint: toolchain
	.ci/deps
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --all-features --locked --quiet

# Everything but the testbed, whose checks are the target of that name.
unit: toolchain
	.ci/deps build
	$(CARGO) test --workspace --exclude testbed --all-features --locked

# Real Xen in QEMU; each check is a test of its own.
testbed: toolchain
	.ci/deps
	$(CARGO) test -p testbed --locked

# All 300 cycles of the soak on real Xen, and an apply killed at 50 moments; the testbed has as many of them as go into a minute or two.
soak: toolchain
	.ci/deps
	TESSERAQT_AT_LENGTH=1 $(CARGO) run --release --quiet -p testbed -- run --check 'qubes_are_made_ended_and_killed*' \
	    --check 'nxl_apply_killed*'

# The shared pages and what is over them, under AddressSanitizer. Needs a nightly toolchain, and fails where there is none.
# (Not the models: they have no shared pages, and loom leaves the threads behind that it proved to be deadlocked.)
asan: toolchain
	.ci/deps build
	RUSTFLAGS=-Zsanitizer=address $(CARGO) +nightly test --lib --test hostile -p tesseraqt-xen -p tesseraqt-vchan \
	    --target x86_64-unknown-linux-gnu --target-dir target/asan --locked -- --skip model::

# The same tests and some conversations over xen-sim under valgrind, which looks at the C libraries, too, and for leaks. (Not the
# models, nor what goes through all values of something or counts what it gets done in a time.)
valgrind: toolchain
	.ci/deps build
	CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="valgrind --quiet --fair-sched=yes --error-exitcode=99 --leak-check=full \
	    --show-leak-kinds=definite --errors-for-leak-kinds=definite" PROPTEST_CASES=8 RUST_BACKTRACE=0 \
	    $(CARGO) test --lib -p tesseraqt-xen -p tesseraqt-vchan --all-features --locked -- \
	    --skip model:: --skip scribbler --skip indices_go_on --skip live_bytes --skip while_the_reader_looks
	$(CARGO) test -p tesseraqt-vchan --all-features --locked -- --ignored valgrind

# For those who have Miri: it runs what makes no system call.
miri: toolchain
	$(CARGO) +nightly miri test --lib -p tesseraqt-vchan -- ring page

# The long form of what `make unit` does with a few channels of the C libraries under valgrind: ten thousand of them.
leaks: toolchain
	.ci/deps build
	$(CARGO) test -p c-libraries-tests --locked -- --ignored

# For FUZZ_SECONDS each; needs a nightly toolchain and cargo-fuzz (`cargo install cargo-fuzz`). What it finds is kept in
# fuzz/corpus, which `make test` replays.
FUZZ_SECONDS ?= 60
fuzz: toolchain
	.ci/deps build
	for target in page traffic policy messages pair command broker; do \
	    $(CARGO) +nightly fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS) -max_len=4096 || exit 1; \
	done

# The documents as a book, in target/book.
book:
	@command -v mdbook > /dev/null || { echo "mdBook is needed (0.5.4 was tried): cargo install --locked mdbook" >&2; exit 1; }
	mdbook build docs

# The last command times creation, the list and the end of qubes beside xl, on real Xen (docs/speed.md); the testbed times each once.
bench: toolchain
	.ci/deps
	$(CARGO) bench --locked
	$(CARGO) bench -p tesseraqt-nexus --benches --locked
	TESSERAQT_AT_LENGTH=1 $(CARGO) run --release --quiet -p testbed -- run --check 'making_listing*' --check 'a_warm_shell*' \
	    --check 'xenstore_has_what_xl_writes_for_a_disk*' --check 'how_long_a*'

# The C libraries take their names from a release of Xen.
XEN_SONAME ?= 4.17
LIBDIR = $(DESTDIR)$(PREFIX)/lib
INCLUDEDIR = $(DESTDIR)$(PREFIX)/include
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

# Where cargo leaves what it builds for `make install`: package by package, as the testbed builds them. Together they would have other
# features, and all would be compiled once more.
RELEASE = $(or $(CARGO_TARGET_DIR),target)/release

install: install-programs install-c

# For C programs: libraries, headers, pkg-config. (A libxenvchan.h of Xen's in the same place is replaced.)
install-c: toolchain
	for package in libxenvchan libvchan-xen; do \
	    XEN_SONAME=$(XEN_SONAME) $(CARGO) build --release --locked -p $$package || exit 1; \
	done
	install -D -m 755 $(RELEASE)/libxenvchan.so $(LIBDIR)/libxenvchan.so.$(XEN_SONAME)
	install -D -m 755 $(RELEASE)/libvchan_xen.so $(LIBDIR)/libvchan-xen.so.1
	ln -sf libxenvchan.so.$(XEN_SONAME) $(LIBDIR)/libxenvchan.so
	ln -sf libvchan-xen.so.1 $(LIBDIR)/libvchan-xen.so
	install -D -m 644 -t $(INCLUDEDIR) vchan/capi/include/*.h
	install -D -m 644 -t $(INCLUDEDIR)/vchan-xen vchan/capi/include/vchan-xen/*.h
	install -d $(LIBDIR)/pkgconfig
	for name in xenvchan vchan-xen; do \
	    sed 's|@PREFIX@|$(PREFIX)|; s|@XEN@|$(XEN_SONAME)|; s|@VERSION@|$(VERSION)|' \
	        vchan/capi/pkgconfig/$$name.pc.in > $(LIBDIR)/pkgconfig/$$name.pc || exit 1; \
	done
	ln -sf vchan-xen.pc $(LIBDIR)/pkgconfig/vchan.pc

# Where libxl looks for the scripts of disks.
XEN_SCRIPTS ?= /etc/xen/scripts

# Where nexusd looks for the policy.
POLICY ?= /etc/qubes/policy.d

install-programs: toolchain
	for package in nxl tesseraqt-vchan tesseraqt-nexus; do $(CARGO) build --release --locked -p $$package || exit 1; done
	install -D -m 755 $(RELEASE)/nxl $(DESTDIR)$(PREFIX)/sbin/nxl
	install -D -m 755 $(RELEASE)/nxl-bootloader $(DESTDIR)$(PREFIX)/sbin/nxl-bootloader
	install -D -m 755 $(RELEASE)/block-nix $(DESTDIR)$(XEN_SCRIPTS)/block-nix
	install -D -m 755 $(RELEASE)/vchan-cat $(DESTDIR)$(PREFIX)/bin/vchan-cat
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/sbin $(RELEASE)/nexusd $(RELEASE)/nexus-agent
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin $(RELEASE)/nexus-ask $(RELEASE)/nexus-call $(RELEASE)/nexus-service
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	install -m 644 nexus/systemd/nexusd.socket $(DESTDIR)$(PREFIX)/lib/systemd/system/nexusd.socket
	sed 's|=/usr/sbin/|=$(PREFIX)/sbin/|' nexus/systemd/nexusd.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/nexusd.service
	sed 's|=/usr/sbin/|=$(PREFIX)/sbin/|' nexus/systemd/nexus-agent.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/nexus-agent.service
	sed 's|=/usr/sbin/|=$(PREFIX)/sbin/|' nexus/systemd/nexus-memory.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/nexus-memory.service
	sed 's|=/usr/sbin/|=$(PREFIX)/sbin/|' nexus/systemd/nexus-ready.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/nexus-ready.service
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/udev/rules.d nexus/systemd/70-nexus-agent.rules
	sed 's|=/usr/sbin/|=$(PREFIX)/sbin/|' nxl/systemd/nexus-apply.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/nexus-apply.service
	sed 's|=/usr/sbin/|=$(PREFIX)/sbin/|' nxl/systemd/nxl-devd.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/nxl-devd.service
	install -D -m 644 nxl/logrotate/nxl $(DESTDIR)/etc/logrotate.d/nxl
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/tmpfiles.d nexus/tmpfiles.d/nexus.conf
	install -D -m 644 -t $(DESTDIR)/etc/logrotate.d nexus/logrotate.d/nexus
	sed 's|=/usr/sbin/|=$(PREFIX)/sbin/|' nexus/systemd/nexus-agent-dom0.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/nexus-agent-dom0.service
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/nexus nexus/systemd/dom0.json
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/sysusers.d nexus/systemd/nexus.conf
	install -D -m 644 -t $(DESTDIR)$(POLICY) nexus/policy.d/90-nexus.policy
	install -d $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/bash-completion/completions \
	    $(DESTDIR)$(PREFIX)/share/zsh/site-functions $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	$(RELEASE)/nxl man $(DESTDIR)$(PREFIX)/share/man/man1
	for program in nxl nxl-bootloader nexusd nexus-agent nexus-ask nexus-call nexus-service vchan-cat; do \
	    share=$(DESTDIR)$(PREFIX)/share; \
	    $(RELEASE)/nxl completions bash $$program > $$share/bash-completion/completions/$$program && \
	    $(RELEASE)/nxl completions zsh $$program > $$share/zsh/site-functions/_$$program && \
	    $(RELEASE)/nxl completions fish $$program > $$share/fish/vendor_completions.d/$$program.fish || exit 1; \
	done

# What a qube that is not built by nixos/modules needs beside the programs, so that dom0 can run commands, see its journal and look
# after its containers, and services run as other users than the agent's where agent.json names some. Not for dom0: there, nobody runs commands by a call.
install-qube:
	install -d $(DESTDIR)/etc/nexus-rpc $(DESTDIR)/etc/qubes/rpc-config $(DESTDIR)$(PREFIX)/lib/systemd/system
	for service in qubes.VMExec nexus.ExecAs nexus.Logs; do \
	    ln -sf $(PREFIX)/bin/nexus-service $(DESTDIR)/etc/nexus-rpc/$$service || exit 1; \
	done
	ln -sf /run/nexus-container.sock $(DESTDIR)/etc/nexus-rpc/nexus.Container
	echo service-messages=true > $(DESTDIR)/etc/qubes/rpc-config/nexus.Container
	install -m 644 nexus/systemd/nexus-container.socket nexus/systemd/nexus-as-user.socket $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|=/usr/bin/|=$(PREFIX)/bin/|' nexus/systemd/nexus-container@.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/nexus-container@.service
	sed 's|=/usr/bin/|=$(PREFIX)/bin/|' nexus/systemd/nexus-as-user@.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/nexus-as-user@.service

# Debian packages, in target/deb; lintian has nothing against them. Needs debhelper.
deb: toolchain
	.ci/deps build packages
	packaging/build target/deb
	lintian --allow-root --fail-on error --suppress-tags bad-distribution-in-changes-file target/deb/*.changes

# The packages, and what becomes of them in a bare Debian 12: installed, tried, purged. As root, and with Debian's mirror at hand.
# Two to three minutes when the programs are built, as the testbed leaves them; two thirds of it to fetch and unpack Debian.
packages: deb
	tests/packages target/deb

# Whether the crates that are for others could be published: each is packed, and compiled from what was packed, with the
# others' packages in place of crates.io's. Needs crates.io's index; five minutes, or eight for the first time.
publish-check: toolchain
	.ci/deps build
	$(CARGO) publish --workspace --dry-run --locked --allow-dirty

clean:
	$(CARGO) clean
	rm -rf .cache

toolchain:
	@command -v $(CARGO) > /dev/null || { echo "Rust 1.95 is needed, from rustup: https://rustup.rs" >&2; exit 1; }
