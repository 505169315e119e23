# HTTPS, OAuth and several hosts, all configured by the NixOS module. A client with a token of the authorization server
# is served. Others are refused, with the address of that server. A gateway asks the server over HTTPS for its own
# clients.
import json

URL = "https://server:8443/mcp"
ISSUER = "https://issuer:9443"
TOKEN = "correct-horse-battery-staple-0123456789"
TRUST = "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"

start_all()
issuer.wait_for_unit("issuer.service")
for node in [gateway, server]:
    node.wait_for_unit("netmond.service")
    node.wait_for_unit("netmon-mcp.service")
server.wait_for_open_port(8443)
issuer.wait_for_open_port(9443)


def token(audience=URL, scope="netmon:read"):
    """A token of the authorization server."""
    return issuer.succeed(f"token {audience} {scope}").strip()


with subtest("a client with a token of the authorization server is served over HTTPS"):
    answer = json.loads(client.succeed(f"{TRUST} mcp-client status http {URL} {token()}"))
    assert answer["daemon"]["connected"], answer

with subtest("its name is in the journal of the server"):
    who = f"jwt:{ISSUER}#alice"
    server.wait_until_succeeds(f"journalctl -u netmon-mcp.service NETMON_WHO={who} -o cat | grep .")

with subtest("tokens for another server, without the scope, or of nobody are refused"):
    for wrong, code in [(token(audience="https://other/mcp"), "401"), (token(scope="other"), "403"), ("nonsense", "401")]:
        refused = client.fail(f"{TRUST} mcp-client status http {URL} {wrong} 2>&1")
        assert code in refused, refused

with subtest("who has no token learns where to get one"):
    curl = "curl --silent --cacert /etc/ssl/certs/ca-certificates.crt"
    header = client.succeed(f"{curl} --include --request POST {URL}")
    assert "401" in header and "resource_metadata=" in header, header
    metadata = json.loads(client.succeed(f"{curl} https://server:8443/.well-known/oauth-protected-resource/mcp"))
    assert metadata["authorization_servers"] == [ISSUER], metadata

with subtest("plain HTTP gets no answer"):
    status, _ = client.execute("curl --silent --max-time 10 http://server:8443/mcp")
    assert status not in (0, 127), status  # an error of curl, which is installed

with subtest("the key of the certificate is a credential that only the service can read"):
    server.fail("su nobody -s /bin/sh -c 'cat /etc/netmon-key' 2>&1")
    folder = server.succeed("systemctl show -p MainPID --value netmon-mcp.service").strip()
    assert "CREDENTIALS_DIRECTORY=" in server.succeed(f"tr '\\0' '\\n' </proc/{folder}/environ")

with subtest("a gateway asks the server over HTTPS, with the token that it was given as a credential"):
    before = server.succeed("systemctl show -p MainPID --value netmond.service").strip()
    call = f"mcp-client status http http://localhost:8080/mcp {TOKEN} host=server"
    answer = json.loads(gateway.succeed(call))
    assert answer["daemon"]["pid"] == int(before), answer
