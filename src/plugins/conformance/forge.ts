/**
 * A guest that lies about who it is: frames that no honest kernel sends, over a packet socket of the guest. `node forge.ts VERB ARGS...`.
 *
 *   advertise IFNAME MAC PREFIX   router advertisements (RFC 4861 §4.2) of itself with a prefix (16 bytes in hex, a /64) to all nodes
 *   claim IFNAME MAC ADDRESS      neighbour advertisements (§4.4) with Override: ADDRESS (16 bytes in hex) is at its MAC
 * Several of each, then it ends.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { must } from '../../sys/errno.ts'
import { close } from '../../sys/fd.ts'
import { addressOf } from '../../sys/libc.ts'
import { linkIndex } from '../../sys/netdev.ts'
import { openPacket } from '../../sys/packet.ts'
import { send } from '../../sys/socket.ts'

const ETHERNET = 14
const IP = 40
const ICMPV6 = 58
const TIMES = 5
const PAUSE_MS = 100
const ALL_NODES = Buffer.from('ff020000000000000000000000000001', 'hex')

const macBytes = (text: string): number[] => text.split(':').map((x) => Number.parseInt(x, 16))

function linkLocal(mac: readonly number[]): Buffer {
  const [a, b, c, d, e, f] = mac as [number, number, number, number, number, number]
  return Buffer.from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/** An ICMPv6 message to all nodes of the link, with its checksum. */
function frame(mac: readonly number[], source: Buffer, message: readonly number[]): Buffer {
  const b = Buffer.alloc(ETHERNET + IP + message.length)
  b.set([0x33, 0x33, 0, 0, 0, 1, ...mac, 0x86, 0xdd, 0x60], 0)
  b.writeUInt16BE(message.length, ETHERNET + 4)
  b.set([ICMPV6, 255], ETHERNET + 6)
  b.set(source, ETHERNET + 8)
  b.set(ALL_NODES, ETHERNET + 24)
  b.set(message, ETHERNET + IP)
  let s = ICMPV6 + message.length
  for (let i = ETHERNET + 8; i < b.length; i += 2) s += b.readUInt16BE(i)
  while (s > 0xffff) s = (s & 0xffff) + (s >>> 16)
  b.writeUInt16BE(~s & 0xffff, ETHERNET + IP + 2)
  return b
}

const verbs: Record<string, (mac: readonly number[], argument: Buffer) => Buffer> = {
  advertise(mac, prefix) {
    const lifetimes = [0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0]
    const options = [1, 1, ...mac, 3, 4, 64, 0xc0, ...lifetimes, ...prefix]
    return frame(mac, linkLocal(mac), [134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, ...options])
  },
  claim: (mac, address) => frame(mac, address, [136, 0, 0, 0, 0x20, 0, 0, 0, ...address, 2, 1, ...mac]),
}

const [verb, ifname, mac, argument] = process.argv.slice(2) as [string, string, string, string]
const lie = verbs[verb]!(macBytes(mac), Buffer.from(argument, 'hex'))
const fd = must(`packet socket on ${ifname}`, openPacket(must(`the device ${ifname}`, linkIndex(ifname)), false))
for (let i = 0; i < TIMES; i++) {
  send(fd, addressOf(lie), lie.length)
  await sleep(PAUSE_MS)
}
close(fd)
process.stdout.write('{}\n')
