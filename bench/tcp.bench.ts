/** The TCP relay against a host in memory: a guest's segment goes to the host's socket, and is acknowledged. */

import { VNET } from '../src/netstack/arena.ts'
import { be32, put32 } from '../src/netstack/wire/bytes.ts'
import { ACK, SYN, seq as seqAt } from '../src/netstack/wire/tcp.ts'
import * as vnet from '../src/netstack/wire/vnet.ts'
import { NEEDS_CSUM } from '../src/netstack/wire/vnet.ts'
import { tcp } from '../test/netstack/net.ts'
import { Rig } from './lib/rig.ts'
import { suite } from './lib/suite.ts'

/** A connection, and a function that brings the next segment of `size` bytes. */
function connection(size: number, from: number, to: string): () => void {
  const six = to.includes('::')
  const L4 = six ? 54 : 34
  const SEQ = L4 + 4
  const mss = six ? 1440 : 1460
  const gso = six ? vnet.GSO_TCPV6 : vnet.GSO_TCPV4
  const rig = new Rig()
  const { bytes } = rig.host.arena
  rig.receive(rig.load(tcp({ from, to, flags: SYN, seq: 1000 })))
  rig.deliver()
  if (rig.lastLen === 0) throw new Error('no SYN-ACK')
  const ack = (seqAt(bytes, rig.lastOff + L4) + 1) | 0
  const len = rig.load(tcp({ from, to, flags: ACK, seq: 1001, ack, data: new Uint8Array(size) }))
  // A guest with offloads leaves the checksum unfinished.
  vnet.write(bytes, rig.slot - VNET, NEEDS_CSUM, size > mss ? gso : 0, L4 + 20, mss, L4, 16)
  const step = (): void => {
    rig.receive(len)
    rig.network.flush()
    put32(bytes, rig.slot + SEQ, (be32(bytes, rig.slot + SEQ) + size) | 0)
  }
  const before = rig.sent
  for (let i = 0; i < 10; i++) step()
  if (rig.sent === before) throw new Error('nothing is acknowledged')
  return step
}

await suite('tcp', {
  'a segment of 1460 bytes in, its acknowledgement out': { run: connection(1460, 4000, '8.8.8.8:80') },
  'a frame of 43800 bytes in, its acknowledgement out': { run: connection(43_800, 4001, '8.8.8.8:80') },
  'a segment of 1440 bytes in, its acknowledgement out, IPv6': { run: connection(1440, 4002, '[2001:db8::8]:80') },
  'a frame of 43200 bytes in, its acknowledgement out, IPv6': { run: connection(43_200, 4003, '[2001:db8::8]:80') },
})
