/**
 * What the TCP relay is composed with: a RelayContext, of whose Host it uses only the part below, so that LocalStreams can
 * stand in between.
 */
import type { RelayContext } from '../flow/context.ts'
import type { Host } from '../host.ts'

/** What the TCP relay uses of a Host. */
export type TcpHost = Pick<
  Host,
  | 'arena'
  | 'now'
  | 'began'
  | 'random32'
  | 'watch'
  | 'armWrite'
  | 'close'
  | 'error'
  | 'tcpConnect'
  | 'connected'
  | 'tcpSend'
  | 'tcpPeek'
  | 'tcpConsume'
  | 'tcpFree'
  | 'tcpShutdown'
  | 'tcpReset'
>

export type TcpContext = Omit<RelayContext, 'host'> & { readonly host: TcpHost }
