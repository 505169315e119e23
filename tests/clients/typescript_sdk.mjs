// The official TypeScript SDKs against a server: `typescript_sdk.mjs FOLDER SERVER...`. FOLDER has the packages; the
// server is a URL or a command line. Version 1 supports only the older era, version 2 both.
import assert from 'node:assert/strict';
import { resolve } from 'node:path';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [folder, ...server] = process.argv.slice(2);
const require = createRequire(resolve(folder, 'package.json'));
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const info = { name: 'test', version: '0' };

async function visit(client, transport, { callTool }) {
  await client.connect(transport);
  const { tools } = await client.listTools();
  assert(tools.some((tool) => tool.name === 'network-monitor'));
  const status = await callTool(client, { name: 'status', arguments: {} });
  assert.equal(status.structuredContent.daemon.connected, true);
  let told = 0;
  const window = { operation: 'incoming', interface: 'lo', duration: 1.2 };
  const options = { onprogress: () => told++ };
  const answer = await callTool(client, { name: 'network-monitor', arguments: window }, options);
  assert.equal(answer.structuredContent.interface, 'lo');
  assert(told > 0);
  const given = new AbortController();
  setTimeout(() => given.abort(), 300);
  const long = { name: 'network-monitor', arguments: { ...window, duration: 60 } };
  await assert.rejects(callTool(client, long, { signal: given.signal }));
  assert(!(await callTool(client, { name: 'status', arguments: {} })).isError);
  await client.close();
}

const url = server[0].startsWith('http') ? new URL(server[0]) : undefined;
const command = { command: server[0], args: server.slice(1) };

const v1 = await load('@modelcontextprotocol/sdk/client/index.js');
const { StreamableHTTPClientTransport } = await load('@modelcontextprotocol/sdk/client/streamableHttp.js');
const { StdioClientTransport } = await load('@modelcontextprotocol/sdk/client/stdio.js');
await visit(new v1.Client(info), url ? new StreamableHTTPClientTransport(url) : new StdioClientTransport(command), {
  callTool: (client, call, options) => client.callTool(call, undefined, options),
});

const v2 = await load('@modelcontextprotocol/client');
const stdio = url ? undefined : await load('@modelcontextprotocol/client/stdio');
for (const options of [{}, { versionNegotiation: { mode: 'auto' } }]) {
  const transport = url ? new v2.StreamableHTTPClientTransport(url) : new stdio.StdioClientTransport(command);
  await visit(new v2.Client(info, options), transport, {
    callTool: (client, call, options) => client.callTool(call, options),
  });
}
console.log('ok');
process.exit(0);
