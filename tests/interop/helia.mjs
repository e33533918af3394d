// Helia does what the JSON object on its standard input says, and prints a JSON array with one answer for each task.
//
//     {"gateways": [URL], "routers": [URL], "token": TEXT, "tasks": [TASK]}
//
// Tasks:  {"do": "cat", "cid", "to": FILE, "offset"?, "length"?}   a file, or a range of it, through the gateways
//                                                                  "session": true asks the providers of the root for all of it
//         {"do": "copy", "cid", "to": FOLDER}                      a directory with everything below it
//         {"do": "block", "cid"}                                   one block, as hex
//         {"do": "add", "path", "profile": OPTIONS}                the CID of a file or a folder; nothing is sent anywhere
//
// An answer is {"ok": VALUE} or {"error": TEXT}.

import { createReadStream, createWriteStream } from 'node:fs'
import { lstat, mkdir, readdir, readlink, symlink } from 'node:fs/promises'
import { join } from 'node:path'
import process from 'node:process'
import { text } from 'node:stream/consumers'
import { pipeline } from 'node:stream/promises'
import { withHTTP } from '@helia/http'
import { unixfs } from '@helia/unixfs'
import { createHeliaLight } from 'helia'
import { importer } from 'ipfs-unixfs-importer'
import { fixedSize } from 'ipfs-unixfs-importer/chunker'
import { balanced } from 'ipfs-unixfs-importer/layout'
import { CID } from 'multiformats/cid'

const DEADLINE_MS = 60_000

async function * entriesOf (path, name) {
  const facts = await lstat(path)
  if (facts.isSymbolicLink()) {
    yield { path: name, link: await readlink(path) }
  } else if (facts.isDirectory()) {
    yield { path: name }
    for (const child of (await readdir(path)).sort()) {
      yield * entriesOf(join(path, child), `${name}/${child}`)
    }
  } else {
    yield { path: name, content: createReadStream(path) }
  }
}

// Every option is given: Helia's own profiles leave some to defaults that differ between its layers.
async function add (task) {
  const { chunkSize, maxLinks, rawLeaves, cidVersion, shardBy } = task.profile
  const nowhere = { put: async (cid) => cid }
  let last
  for await (const entry of importer(entriesOf(task.path, 'root'), nowhere, {
    chunker: fixedSize({ chunkSize }),
    layout: balanced({ maxChildrenPerNode: maxLinks }),
    rawLeaves,
    cidVersion,
    shardSplitStrategy: shardBy,
    shardSplitThresholdBytes: 262144,
    shardFanoutBits: 8,
    reduceSingleLeafToSelf: true,
    leafType: 'file',
    fieldOrder: 'links-first',
    wrapWithDirectory: false
  })) {
    last = entry
  }
  return last.cid.toString()
}

async function cat (fs, task) {
  const { offset, length } = task
  await pipeline(
    fs.cat(CID.parse(task.cid), { offset, length, signal: AbortSignal.timeout(DEADLINE_MS) }),
    createWriteStream(task.to, { flags: 'wx' })
  )
  return task.to
}

async function copy (fs, cid, to) {
  const signal = AbortSignal.timeout(DEADLINE_MS)
  await mkdir(to)
  let count = 0
  for await (const entry of fs.ls(cid, { signal })) {
    const target = join(to, entry.name)
    const facts = await fs.stat(entry.cid, { signal })
    if (facts.type === 'directory') {
      count += await copy(fs, entry.cid, target)
    } else if (facts.unixfs?.type === 'symlink') {
      await symlink(new TextDecoder().decode(facts.unixfs.data), target)
    } else {
      await cat(fs, { cid: entry.cid.toString(), to: target })
    }
    count++
  }
  return count
}

async function block (helia, task) {
  const pieces = []
  const found = await helia.blockstore.get(CID.parse(task.cid), { signal: AbortSignal.timeout(DEADLINE_MS) })
  for await (const piece of found) pieces.push(piece)
  return Buffer.concat(pieces).toString('hex')
}

const request = JSON.parse(await text(process.stdin))
if (request.token != null) { // Helia has no place for a token of its routers
  const plain = globalThis.fetch
  globalThis.fetch = async (resource, init) => {
    const headers = new Headers(init?.headers)
    headers.set('authorization', `Bearer ${request.token}`)
    return await plain(resource, { ...init, headers })
  }
}
// Helia comes to its gateways when a router has found nobody; without any router it waits for ever.
const nobody = { name: 'nobody', findProviders: async function * () {} }
const helia = await withHTTP(createHeliaLight({ routers: [() => nobody] }), {
  delegatedRouters: request.routers ?? [],
  recursiveGateways: request.gateways ?? [],
  allowInsecure: true,
  allowLocal: true
}).start()
const fs = unixfs(helia)
const inSession = (cid) => ({ ...helia, blockstore: helia.blockstore.createSession(CID.parse(cid)) })
const does = {
  add,
  cat: async (task) => await cat(task.session ? unixfs(inSession(task.cid)) : fs, task),
  copy: async (task) => await copy(fs, CID.parse(task.cid), task.to),
  block: async (task) => await block(helia, task)
}
const answers = []
const awake = setInterval(() => {}, 1000) // a deadline alone does not keep Node.js from ending
for (const task of request.tasks) {
  try {
    answers.push({ ok: await does[task.do](task) })
  } catch (error) {
    answers.push({ error: String(error?.errors?.map(String).join('; ') ?? error) })
  }
}
clearInterval(awake)
await helia.stop()
process.stdout.write(JSON.stringify(answers) + '\n', () => process.exit(0))
