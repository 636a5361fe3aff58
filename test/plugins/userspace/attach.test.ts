/** An attach that nobody waits for any more leaves nothing: neither a device nor a port of the switch that has the MAC. Real TAPs, a real data plane. */
import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, afterEach, beforeEach, test } from 'node:test'
import { Guest } from '../../../src/plugins/conformance/guest.ts'
import type { AttachRequest, BackendContext } from '../../../src/plugins/contract.ts'
import { UserspaceBackend } from '../../../src/plugins/userspace/backend.ts'
import { network } from '../../e2e/agent-client.ts'
import { missing } from '../needs.ts'
import { ownHost } from '../own-host.ts'

const skip = missing() || (existsSync('/dev/net/tun') ? false : 'needs /dev/net/tun') || ownHost()
const dir = mkdtempSync(join(tmpdir(), 'nt-attach-'))
const context: BackendContext = { runDir: dir, stateDir: dir, privileged: true, log: () => {}, notify: () => {} }
const n = network(78)
const soon = () => AbortSignal.timeout(60_000)
let backend: UserspaceBackend
let guest: Guest

beforeEach(async () => {
  if (skip) return
  backend = new UserspaceBackend(context)
  await backend.createNetwork({ ...n, config: backend.parseConfig(undefined) }, soon())
  guest = await Guest.open()
})
afterEach(async () => {
  if (skip) return
  await backend.deleteNetwork(n.id, soon())
  await backend.close()
  await guest.close()
})
after(() => rmSync(dir, { recursive: true, force: true }))

const request = (more: Partial<AttachRequest> = {}): AttachRequest => ({
  id: 'a',
  network: n.id,
  name: 'web',
  mac: '52:54:00:00:78:01',
  addresses: ['192.168.78.10/24'],
  accepts: ['tap', 'netdev'],
  netns: guest.netns,
  ...more,
})
/** The same, which says when its nic is being handed over: its addresses are read then. */
const telling = (told: () => void): AttachRequest => {
  const { addresses, ...r } = request()
  return {
    ...r,
    get addresses() {
      told()
      return addresses
    },
  }
}
const nothingIsLeft = async () => {
  const links = JSON.parse(await guest.run('ip', '-j', 'link', 'show')) as { ifname: string }[]
  assert.deepEqual(
    links.map((l) => l.ifname),
    ['lo'],
  )
  const { ports } = await backend.stats(n.id)
  assert.deepEqual(
    ports.filter((p) => p.vm === 'web'),
    [],
  )
  assert.deepEqual((await backend.gc(n.id, [], soon())).removed, [])
}

test('cancelled while its nic is handed over', { skip }, async () => {
  const cancel = new AbortController()
  const attaching = backend.attach(
    telling(() => cancel.abort(new Error('cancelled'))),
    cancel.signal,
  )
  await assert.rejects(attaching, /cancelled/)
  await nothingIsLeft()
})

test('a VM that runs keeps its nic when a second attach of it is cancelled', { skip }, async () => {
  const a = await backend.attach(request(), soon())
  await guest.run('ip', 'link', 'delete', 'eth0')
  const cancel = new AbortController()
  const again = backend.attach(
    telling(() => cancel.abort(new Error('cancelled'))),
    cancel.signal,
  )
  await assert.rejects(again, /cancelled/)
  await backend.check(a, soon())
  await backend.detach(a.id, a, soon())
  await nothingIsLeft()
})

test('detached while it is still being attached, by whoever has no attachment to show', { skip }, async () => {
  const attaching = backend.attach(request(), soon())
  await backend.detach('a', undefined, soon())
  await attaching
  await nothingIsLeft()
})

test('detached by a daemon that has only just come', { skip }, async () => {
  await backend.attach(request(), soon())
  await backend.close()
  backend = new UserspaceBackend(context)
  await backend.createNetwork({ ...n, config: backend.parseConfig(undefined) }, soon())
  await backend.detach('a', undefined, soon())
  await nothingIsLeft()
})
