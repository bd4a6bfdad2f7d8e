// SPDX-License-Identifier: Apache-2.0
// other.js CELL STATE: rows of the matrix as a node program makes them; CELL is the C program, for peers and images.
"use strict";
const net = require("node:net");
const { once } = require("node:events");
const { spawn } = require("node:child_process");

const [cell, state] = process.argv.slice(2);
const before = { unread: 10000, "half-closed": 10000, full: 1 << 20 }[state] ?? 0;
const TURNS = 40, MESSAGE = 64, MASK = (1n << 64n) - 1n;

function random(seed) {
  let s = BigInt(seed);
  return (count) => {
    const out = Buffer.alloc(count);
    for (let i = 0; i < count; i++) {
      s ^= s >> 12n;
      s ^= (s << 25n) & MASK;
      s ^= s >> 27n;
      out[i] = Number(((s * 0x2545f4914f6cdd1dn) >> 32n) & 255n);
    }
    return out;
  };
}

async function get(conn, count) {
  const parts = [];
  while (count) {
    const part = conn.read(Math.min(count, conn.readableLength || count)) ?? conn.read();
    if (part) {
      parts.push(part);
      count -= part.length;
    } else if (conn.readableEnded) throw new Error("the end");
    else await Promise.race([once(conn, "readable"), once(conn, "end")]);
  }
  return Buffer.concat(parts);
}

async function setState(conn) {
  for (let i = 0; i < 60 && state !== "offered"; i++) {
    await get(conn, 1);
    if (state !== "switching") conn.write(Buffer.alloc(1));
  }
}

async function actor(conn) {
  const incoming = random(1), outgoing = random(2);
  if (!(await get(conn, before)).equals(incoming(before))) return 1;
  for (let i = 0; i < TURNS; i++) {
    conn.write(outgoing(MESSAGE));
    if (state !== "half-closed" && !(await get(conn, MESSAGE)).equals(incoming(MESSAGE))) return 1;
  }
  conn.end();
  conn.resume();
  await once(conn, "end");
  return 0;
}

// The child inherits the descriptor: what node has read before is node's, so this goes before the first byte is asked for.
async function inetd(conn) {
  const child = spawn(cell, ["actor", "0", state], { stdio: [conn, "inherit", "inherit"] });
  conn.destroy();
  return (await once(child, "exit"))[0];
}

async function cellOf(name, run) {
  const peer = spawn(cell, ["peer", "listen", state], { stdio: ["ignore", "pipe", "inherit"] });
  const [port] = await once(peer.stdout, "data");
  const gone = once(peer, "exit");
  const conn = net.connect({ port: Number(port), host: "127.0.0.1", allowHalfOpen: true });
  conn.setMaxListeners(0);
  await once(conn, "connect");
  if (run === actor) await setState(conn);
  const status = await run(conn);
  const [there] = await gone;
  conn.destroy();
  console.log(name, peer.pid, status, there);
}

(async () => {
  await cellOf("nothing", actor);
  if (state === "offered") await cellOf("inetd", inetd);
})();
