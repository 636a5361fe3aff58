/** A frame's headers, read and checked once. */
import { Frame } from '../src/netstack/frame.ts'
import { CARRIES_IPV4, CARRIES_IPV6, parse } from '../src/netstack/wire/parse.ts'
import { arp, type Build, tcp, udp } from '../test/netstack/net.ts'
import { Rig } from './lib/rig.ts'
import { type Case, suite } from './lib/suite.ts'

const PER = 100
const BOTH = CARRIES_IPV4 | CARRIES_IPV6

function parsing(build: Build): Case {
  const rig = new Rig()
  const { bytes } = rig.host.arena
  const frame = new Frame()
  frame.off = rig.slot
  frame.len = rig.load(build)
  if (parse(bytes, frame, true, BOTH) !== 0) throw new Error('the frame is not sound')
  return {
    per: PER,
    run: () => {
      for (let i = 0; i < PER; i++) parse(bytes, frame, true, BOTH)
    },
  }
}

await suite('parse', {
  'parse a TCP segment of 1460 bytes': parsing(tcp({ to: '8.8.8.8:80', flags: 16, data: new Uint8Array(1460) })),
  'parse a UDP datagram of 64 bytes': parsing(udp({ to: '8.8.8.8:9000', data: new Uint8Array(64) })),
  'parse a TCP segment of 1440 bytes, IPv6': parsing(
    tcp({ to: '[2001:db8::8]:80', flags: 16, data: new Uint8Array(1440) }),
  ),
  'parse an ARP request': parsing(arp({ target: '192.168.100.1' })),
})
