// SPDX-License-Identifier: Apache-2.0
// node hello.js PORT|PATH: answers every request with 13 bytes.
"use strict";

const http = require("http");

const address = process.argv[2];
const body = "Hello, world\n";

http.createServer((request, response) => {
  response.writeHead(200, { "Content-Type": "text/plain", "Content-Length": body.length });
  response.end(body);
}).listen(...(address.startsWith("/") ? [address] : [Number(address), "127.0.0.1"]));
