// SPDX-License-Identifier: Apache-2.0
// nodehttp.js server PORT | client PORT: bodies are echoed over kept-alive connections.
'use strict';
const http = require('http');
const crypto = require('crypto');
const [role, port] = [process.argv[2], Number(process.argv[3])];

function serve() {
  const server = http.createServer((request, response) => request.pipe(response));
  server.listen(port, '127.0.0.1');
  process.on('SIGTERM', () => process.exit(0));
}

function post(agent, body) {
  return new Promise((resolve, reject) => {
    const options = { agent, port, host: '127.0.0.1', method: 'POST', headers: { 'Content-Length': body.length } };
    const request = http.request(options, (response) => {
      const parts = [];
      response.on('data', (part) => parts.push(part));
      response.on('end', () => resolve(Buffer.concat(parts)));
    });
    request.on('error', reject);
    request.end(body);
  });
}

async function client() {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
  for (let round = 0; round < 40; round++) {
    const bodies = [10, 1000, 30000, 200000].map((size) => crypto.randomBytes(size));
    const answers = await Promise.all(bodies.map((body) => post(agent, body)));
    answers.forEach((answer, i) => {
      if (!answer.equals(bodies[i])) throw new Error(`round ${round}: body ${i} differs`);
    });
  }
  console.log('ok');
  agent.destroy();
}

if (role === 'server') serve();
else client().catch((error) => { console.error(error); process.exit(1); });
