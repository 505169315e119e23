// The equivalent of netmon-mcp on the official TypeScript SDK, for the benchmarks: `equivalent.mjs FOLDER ANSWER
// [PORT]`. FOLDER has the package. The server has one tool, whose structured answer is the file ANSWER. It serves over
// HTTP with a port, and over stdio without.
import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

const [folder, file, port] = process.argv.slice(2);
const require = createRequire(resolve(folder, 'package.json'));
const load = (name) => import(pathToFileURL(require.resolve(`@modelcontextprotocol/sdk/${name}`)).href);
const { McpServer } = await load('server/mcp.js');
const { StdioServerTransport } = await load('server/stdio.js');
const { StreamableHTTPServerTransport } = await load('server/streamableHttp.js');
const { z } = await import(pathToFileURL(require.resolve('zod')).href);
const answer = JSON.parse(readFileSync(file, 'utf8'));

function server() {
  const server = new McpServer({ name: 'equivalent', version: '0' });
  const tool = { description: 'Answers at once.', inputSchema: { duration_ms: z.number() } };
  server.registerTool('snapshot_interfaces', tool, async () => ({
    content: [{ type: 'text', text: JSON.stringify(answer) }],
    structuredContent: answer,
  }));
  return server;
}

const sessions = new Map();

async function handle(request, response) {
  let transport = sessions.get(request.headers['mcp-session-id']);
  if (!transport) {
    transport = new StreamableHTTPServerTransport({
      sessionIdGenerator: randomUUID,
      onsessioninitialized: (id) => sessions.set(id, transport),
    });
    await server().connect(transport);
  }
  await transport.handleRequest(request, response);
}

if (port) createServer(handle).listen(Number(port), '127.0.0.1');
else await server().connect(new StdioServerTransport());
