/**
 * ARP of the gateway (RFC 826): it answers for its own addresses, in the memory of the request.
 *
 * It never asks: every guest's MAC is known from its port. Probes (RFC 5227) for its addresses are answered too, which is how a
 * guest learns that an address is taken.
 */
import { VNET } from '../arena.ts'
import type { Frame } from '../frame.ts'
import type { Switch } from '../switch/switch.ts'
import * as arp from '../wire/arp.ts'
import * as ethernet from '../wire/ethernet.ts'
import * as vnet from '../wire/vnet.ts'

/** Answer a request for `address`, which is ours, with our MAC. */
export function answer(b: Uint8Array, f: Frame, sw: Switch, address: number, hi: number, lo: number): void {
  const o = f.l3
  const toHi = arp.senderHi(b, o)
  const toLo = arp.senderLo(b, o)
  arp.write(b, o, arp.REPLY, hi, lo, address, toHi, toLo, arp.senderIp(b, o))
  ethernet.setDst(b, f.off, toHi, toLo)
  ethernet.setSrc(b, f.off, hi, lo)
  vnet.clear(b, f.off - VNET)
  sw.deliver(f.port, f.off, ethernet.ETHERNET + arp.ARP)
}
