// What a capture of a network says: each frame once, where it came in or went out, and why it went no further.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Capture } from '../../../src/netstack/trace/capture.ts'
import { ETHERNET } from '../../../src/netstack/wire/ethernet.ts'
import * as ip from '../../../src/netstack/wire/ipv4.ts'
import { raw, TestNet, tcp, udp } from '../net.ts'

const EAGAIN = 11

interface Shown {
  readonly port: string
  readonly way: 'in' | 'out'
  readonly bytes: Buffer
  readonly length: number
  readonly comment: string
}

/** The frames of a capture's file so far. */
function shown(c: Capture): Shown[] {
  const parts: Buffer[] = []
  for (let p = c.pending(); p.length > 0; p = c.pending()) {
    parts.push(Buffer.from(p))
    c.taken(p.length)
  }
  const file = Buffer.concat(parts)
  const names: string[] = []
  const found: Shown[] = []
  for (let at = 0; at < file.length; at += file.readUInt32LE(at + 4)) {
    const type = file.readUInt32LE(at)
    if (type === 1) names.push(file.toString('latin1', at + 20, at + 20 + file.readUInt16LE(at + 18)))
    if (type !== 6) continue
    const captured = file.readUInt32LE(at + 20)
    const options = at + 28 + ((captured + 3) & ~3)
    const comment = file.readUInt16LE(options + 8) === 1 ? file.readUInt16LE(options + 10) : 0
    found.push({
      port: names[file.readUInt32LE(at + 8)] as string,
      way: file.readUInt32LE(options + 4) === 1 ? 'in' : 'out',
      bytes: file.subarray(at + 28, at + 28 + captured),
      length: file.readUInt32LE(at + 24),
      comment: file.toString('utf8', options + 12, options + 12 + comment),
    })
  }
  return found
}

const line = (s: Shown): string => `${s.port} ${s.way}${s.comment === '' ? '' : ` ${s.comment.split(':')[0]}`}`
const clock = (): number => 1_700_000_000_000_000

test('a frame between two VMs is seen twice, and by a capture of one VM once', () => {
  const net = new TestNet()
  const [a, b] = [net.vm('a'), net.vm('b')]
  const all = net.network.capture({ only: -1, clock })
  const one = net.network.capture({ only: b.index, clock })
  a.send(udp({ to: `${b.ip}:9`, from: 5, dstMac: b.mac, data: 'x' }))
  assert.deepEqual(shown(all).map(line), ['a in', 'b out'])
  net.network.endCapture(all)
  a.send(udp({ to: `${b.ip}:9`, from: 5, dstMac: b.mac, data: 'y' }))
  assert.deepEqual(shown(all), [])
  assert.deepEqual(shown(one).map(line), ['b out', 'b out'])
})

test('a refused frame is shown once, as it came, with its reason; before what it caused', () => {
  const net = new TestNet()
  const a = net.vm('a')
  const capture = net.network.capture({ only: -1, clock })
  a.send(udp({ from: '10.0.0.1:5', to: '8.8.8.8:9', data: 'x' }))
  a.send(udp({ to: '169.254.169.254:80', data: 'x' }))
  a.send(raw(new Uint8Array(12)))
  const seen = shown(capture)
  assert.deepEqual(seen.map(line), ['a in guard-address', 'a in deny-link-local', 'a out', 'a in frame-short'])
  assert.match(seen[0]!.comment, /^guard-address: a source address that is not the VM’s own/)
  assert.equal(seen[3]!.length, 12)
})

test('what a service refuses has its reason too', () => {
  const net = new TestNet()
  const a = net.vm('a')
  const capture = net.network.capture({ only: -1, clock })
  a.send(udp({ to: '192.168.100.2:53', data: 'no question' }))
  assert.deepEqual(shown(capture).map(line), ['a in dns-malformed'])
})

test('a frame that its port does not take is shown going out, with the reason', () => {
  const net = new TestNet()
  const [a, b] = [net.vm('a'), net.vm('b')]
  const capture = net.network.capture({ only: -1, clock })
  b.port.failure = -EAGAIN
  a.send(udp({ to: `${b.ip}:9`, from: 5, dstMac: b.mac, data: 'x' }))
  assert.deepEqual(shown(capture).map(line), ['a in', 'b out port-busy'])
})

test('a frame is shown as it came in, whatever is done with its bytes; a large one whole', () => {
  const net = new TestNet()
  const [a, b] = [net.vm('a'), net.vm('b')]
  const capture = net.network.capture({ only: -1, clock })
  const data = new Uint8Array(30_000).fill(7)
  a.send(tcp({ to: `${b.ip}:80`, from: 5, dstMac: b.mac, flags: 16, data, segment: 1448 }))
  const [first, second] = shown(capture)
  assert.equal(first!.length, ETHERNET + 40 + data.length)
  assert.deepEqual(first!.bytes, second!.bytes)
  assert.equal(ip.totalLength(first!.bytes, ETHERNET), 40 + data.length)
})

test('an index that is given to another VM is another interface', () => {
  const net = new TestNet()
  const a = net.vm('a')
  const capture = net.network.capture({ only: -1, clock })
  a.send(udp({ to: '192.168.100.2:53', data: 'x' }))
  net.network.detach(a.index)
  const c = net.vm('c')
  assert.equal(c.index, a.index)
  c.send(udp({ to: '192.168.100.2:53', data: 'x' }))
  assert.deepEqual(
    shown(capture).map((s) => s.port),
    ['a', 'c'],
  )
})
