// A js-ipfs daemon on loopback: the two parts of the package `ipfs` 0.66.1, its core and its HTTP API, without its command
// line. Prints {"api": URL} once it answers; ends when its standard input does.
//
//     node js_ipfs_daemon.mjs REPO
//
// It listens for no peers and knows none, so it can reach nothing.

import process from 'node:process'
import { create } from 'ipfs-core'
import { HttpApi } from 'ipfs-http-server'

const ipfs = await create({
  repo: process.argv[2],
  silent: true,
  offline: true,
  preload: { enabled: false },
  init: { algorithm: 'Ed25519', emptyRepo: true },
  config: {
    Addresses: { API: '/ip4/127.0.0.1/tcp/0', Delegates: [], Gateway: '', RPC: '', Swarm: [] },
    Bootstrap: [],
    Discovery: { MDNS: { Enabled: false }, webRTCStar: { Enabled: false } },
    Routing: { Type: 'none' }
  }
})
const api = new HttpApi(ipfs)
await api.start()

let ending = false
async function end () {
  if (ending) return
  ending = true
  await api.stop()
  await ipfs.stop()
  process.exit(0)
}
process.on('SIGTERM', end)
process.stdin.on('end', end)
process.stdin.resume()
process.stdout.write(JSON.stringify({ api: api._apiServers[0].info.uri }) + '\n')
