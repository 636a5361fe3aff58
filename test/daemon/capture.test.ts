/** Captures over the API: whose frames, who may, nothing kept for a client that does not read, nothing left of one that leaves. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import type { IncomingMessage } from 'node:http'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { send } from '../../src/client/http.ts'
import { NoidError } from '../../src/errors.ts'
import { eventually } from '../eventually.ts'
import { Lab } from './harness.ts'

const code = (c: string) => (e: unknown) => e instanceof NoidError && e.code === c

test('a network or one VM of it; a client that leaves ends it', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  const { id } = await lab.create('web')
  for (const [kind, name, asked] of [
    ['network', 'default', { snapLength: 128 }],
    ['vm', 'web', { attachment: id, snapLength: 128 }],
  ] as const) {
    const frames = (await lab.client.capture(kind, name, 128)) as IncomingMessage
    assert.equal(frames.headers['content-type'], 'application/x-pcapng')
    await once(frames, 'data')
    frames.destroy()
    await eventually('it is ended', () => lab.world.has('.captured'))
    lab.world.drop('.captured')
    const { network, ...o } = JSON.parse(lab.world.get('.capture'))
    assert.match(network, /./)
    assert.deepEqual(o, asked)
  }
})

test('a client that does not read: the daemon keeps next to nothing', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  await lab.create('web')
  const frames = (await lab.client.capture('vm', 'web')) as IncomingMessage
  frames.pause()
  await sleep(500)
  frames.destroy()
  await eventually('it is ended', () => lab.world.has('.captured'))
  assert.ok(Number(lab.world.get('.captured')) < 4 << 20, lab.world.get('.captured'))
})

test('what cannot be captured is refused with the reason', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  await lab.create('web')
  await lab.create('other', { networkBackend: 'bare' })
  await assert.rejects(lab.client.capture('vm', 'other'), code('CAPABILITY_MISSING'))
  await assert.rejects(lab.client.capture('network', 'default-bare'), code('CAPABILITY_MISSING'))
  await assert.rejects(lab.client.capture('vm', 'nobody'), code('VM_UNKNOWN'))
  await assert.rejects(lab.client.capture('network', 'nothing'), code('NETWORK_UNKNOWN'))
  await lab.client.stop('web', 0)
  await assert.rejects(lab.client.capture('vm', 'web'), code('VM_NOT_RUNNING'))
  for (const query of ['snap=3', 'snap=x', 'count=3'])
    await assert.rejects(
      send({ socket: lab.paths.socket }, 'GET', `/v1/networks/default/capture?${query}`),
      code('INVALID_INPUT'),
    )
})
