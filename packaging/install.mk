# Installs the programs of `make build`: `sudo make install`, or into a package's folder with DESTDIR.
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
BUILT ?= target/release
share := $(DESTDIR)$(PREFIX)/share
lib := $(DESTDIR)$(PREFIX)/lib
units := netmond.service netmond.socket netmon-mcp.service netmon-recorder.service
skills := $(notdir $(wildcard docs/skills/*))
.PHONY: install install-programs install-data install-generated uninstall

install: install-programs install-data install-generated
	@test -n "$(DESTDIR)" || echo "Next, as root: systemd-sysusers && systemctl daemon-reload && systemctl enable --now netmond.socket netmond"

install-programs:
	@test -x $(BUILT)/netmond || { echo "There is no $(BUILT)/netmond: run make build first, as yourself." >&2; exit 1; }
	install -D -t $(DESTDIR)$(PREFIX)/bin $(BUILT)/netmond $(BUILT)/netmon-mcp

# The units name the installed paths. Changed settings are kept.
install-data:
	install -d $(lib)/systemd/system
	for unit in $(units); do \
		sed 's#/usr/bin/#$(PREFIX)/bin/#' packaging/systemd/$$unit >$(lib)/systemd/system/$$unit || exit 1; done
	install -D -m 644 -t $(lib)/sysusers.d packaging/sysusers/netmon.conf
	install -D -m 644 -t $(share)/netmon-mcp/grafana packaging/grafana/netmon.json
	for skill in $(skills); do \
		install -D -m 644 -t $(share)/netmon-mcp/skills/$$skill docs/skills/$$skill/SKILL.md || exit 1; done
	test -e $(DESTDIR)$(SYSCONFDIR)/netmon/netmon.toml || \
		install -D -m 644 -t $(DESTDIR)$(SYSCONFDIR)/netmon packaging/netmon.toml

# The generated man pages and completions.
install-generated:
	install -d $(share)/man/man1 $(share)/man/man8 $(share)/bash-completion/completions \
		$(share)/zsh/site-functions $(share)/fish/vendor_completions.d
	$(BUILT)/netmon-mcp man >$(share)/man/man1/netmon-mcp.1
	$(BUILT)/netmond --man >$(share)/man/man8/netmond.8
	$(BUILT)/netmon-mcp completions bash >$(share)/bash-completion/completions/netmon-mcp
	$(BUILT)/netmon-mcp completions zsh >$(share)/zsh/site-functions/_netmon-mcp
	$(BUILT)/netmon-mcp completions fish >$(share)/fish/vendor_completions.d/netmon-mcp.fish

# Keeps changed settings, like a package manager. The administrator stops running services.
settings := $(DESTDIR)$(SYSCONFDIR)/netmon/netmon.toml
uninstall:
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,netmond netmon-mcp) $(addprefix $(lib)/systemd/system/,$(units)) \
		$(lib)/sysusers.d/netmon.conf $(share)/man/man1/netmon-mcp.1 $(share)/man/man8/netmond.8 \
		$(share)/bash-completion/completions/netmon-mcp $(share)/zsh/site-functions/_netmon-mcp \
		$(share)/fish/vendor_completions.d/netmon-mcp.fish
	rm -rf $(share)/netmon-mcp
	! cmp -s packaging/netmon.toml $(settings) || rm $(settings)
	test ! -d $(dir $(settings)) || rmdir --ignore-fail-on-non-empty $(dir $(settings))
