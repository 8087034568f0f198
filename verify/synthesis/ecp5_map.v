// Rules that map what a core is made of to ECP5's slices, ahead of the general ones, which take two to four times the
// LUTs: a lane's multiplier 149 instead of 30, a multiplexer of 16 inputs 21 a bit instead of 8.

// Multipliers by 2 to 5 bits, signed, and unsigned ones by 2. A LUT of a carry chain has four inputs, so it adds two
// partial products a bit.
(* techmap_celltype = "$mul" *)
module narrow_mul (A, B, Y);
  parameter A_SIGNED = 0; parameter B_SIGNED = 0;
  parameter A_WIDTH = 1; parameter B_WIDTH = 1; parameter Y_WIDTH = 1;
  (* force_downto *) input [A_WIDTH-1:0] A;
  (* force_downto *) input [B_WIDTH-1:0] B;
  (* force_downto *) output [Y_WIDTH-1:0] Y;
  generate
  if (A_WIDTH < B_WIDTH) begin
    \$mul #(.A_SIGNED(B_SIGNED), .B_SIGNED(A_SIGNED), .A_WIDTH(B_WIDTH), .B_WIDTH(A_WIDTH), .Y_WIDTH(Y_WIDTH))
      _TECHMAP_REPLACE_ (.A(B), .B(A), .Y(Y));
  end else if (!A_SIGNED && !B_SIGNED && B_WIDTH == 2) begin
    localparam P = Y_WIDTH < A_WIDTH + 2 ? Y_WIDTH : A_WIDTH + 2;
    wire [P-1:0] product;
    \$__rows #(.A_WIDTH(A_WIDTH + 1), .P(P), .SUBTRACT(0)) rows_only (.A({1'b0, A}), .B(B), .Y(product));
    assign Y = product;
  end else if (!A_SIGNED || !B_SIGNED || B_WIDTH < 2 || B_WIDTH > 5) begin
    wire _TECHMAP_FAIL_ = 1;
  end else if (B_WIDTH < 4) begin
    localparam P = A_WIDTH + 2;
    wire [P-1:0] low;
    \$__rows #(.A_WIDTH(A_WIDTH), .SUBTRACT(B_WIDTH == 2)) rows_low (.A(A), .B(B[1:0]), .Y(low));
    if (B_WIDTH == 2) assign Y = $signed(low);
    else begin
      wire [P:0] total;
      assign total[1:0] = low[1:0];
      \$__minus_row #(.A_WIDTH(A_WIDTH), .X_WIDTH(A_WIDTH)) last (.A(A), .B(B[2]), .X(low[P-1:2]), .Y(total[P:2]));
      assign Y = $signed(total);
    end
  end else begin
    localparam P = A_WIDTH + 2;
    localparam W = A_WIDTH + B_WIDTH;
    wire [P-1:0] low, high;
    wire [W-1:0] total;
    \$__rows #(.A_WIDTH(A_WIDTH), .SUBTRACT(0)) rows_low (.A(A), .B(B[1:0]), .Y(low));
    \$__rows #(.A_WIDTH(A_WIDTH), .SUBTRACT(B_WIDTH == 4)) rows_high (.A(A), .B(B[3:2]), .Y(high));
    assign total[1:0] = low[1:0];
    if (B_WIDTH == 4) begin
      assign total[W-1:2] = $signed(low[P-1:2]) + $signed(high);
    end else begin
      wire [P:0] sum = $signed(low[P-1:2]) + $signed(high);
      assign total[3:2] = sum[1:0];
      \$__minus_row #(.A_WIDTH(A_WIDTH), .X_WIDTH(P - 1)) last (.A(A), .B(B[4]), .X(sum[P:2]), .Y(total[W-1:4]));
    end
    assign Y = $signed(total);
  end
  endgenerate
endmodule

// The lowest P bits of A * B[0] + 2 * A * B[1], or of A * B[0] - 2 * A * B[1]; A signed
(* techmap_celltype = "$__rows" *)
module rows (A, B, Y);
  parameter A_WIDTH = 8; parameter P = A_WIDTH + 2; parameter SUBTRACT = 0;
  localparam N = (P + 1) / 2;
  input [A_WIDTH-1:0] A; input [1:0] B; output [P-1:0] Y;
  wire [2*N-1:0] first = $signed(A);
  wire [2*N-1:0] second = {first[2*N-2:0], 1'b0};
  wire [2*N-1:0] sum;
  wire [N:0] carry;
  assign carry[0] = SUBTRACT ? 1'b1 : 1'b0;
  genvar i;
  generate for (i = 0; i < N; i = i + 1) begin
    CCU2C #(.INIT0(SUBTRACT ? 16'h8777 : 16'h7888), .INIT1(SUBTRACT ? 16'h8777 : 16'h7888), .INJECT1_0("NO"), .INJECT1_1("NO"))
      cell_ (.CIN(carry[i]), .A0(second[2*i]), .B0(B[1]), .C0(first[2*i]), .D0(B[0]),
             .A1(second[2*i+1]), .B1(B[1]), .C1(first[2*i+1]), .D1(B[0]),
             .S0(sum[2*i]), .S1(sum[2*i+1]), .COUT(carry[i+1]));
  end endgenerate
  assign Y = sum[P-1:0];
endmodule

// X - A * B; A and X signed
(* techmap_celltype = "$__minus_row" *)
module minus_row (A, B, X, Y);
  parameter A_WIDTH = 8; parameter X_WIDTH = 9;
  localparam P = A_WIDTH + 1;
  localparam N = (P + 1) / 2;
  input [A_WIDTH-1:0] A; input B; input [X_WIDTH-1:0] X; output [P-1:0] Y;
  wire [2*N-1:0] row = {{(2*N-A_WIDTH){A[A_WIDTH-1]}}, A};
  wire [2*N-1:0] from = {{(2*N){X[X_WIDTH-1]}}, X};
  wire [2*N-1:0] sum;
  wire [N:0] carry;
  assign carry[0] = 1'b1;
  genvar i;
  generate for (i = 0; i < N; i = i + 1) begin
    CCU2C #(.INIT0(16'h8777), .INIT1(16'h8777), .INJECT1_0("NO"), .INJECT1_1("NO"))
      cell_ (.CIN(carry[i]), .A0(row[2*i]), .B0(B), .C0(from[2*i]), .D0(1'b1),
             .A1(row[2*i+1]), .B1(B), .C1(from[2*i+1]), .D1(1'b1),
             .S0(sum[2*i]), .S1(sum[2*i+1]), .COUT(carry[i+1]));
  end endgenerate
  assign Y = sum[P-1:0];
endmodule

// Words selected by an index. The slice's own multiplexers, PFUMX and L6MUX21, join LUTs; with five inputs, which
// frontends put at either end and fill up with constants, one LUT more takes the fifth.
(* techmap_celltype = "$bmux" *)
module wide_mux (A, S, Y);
  parameter WIDTH = 1; parameter S_WIDTH = 1;
  (* force_downto *) input [(WIDTH << S_WIDTH)-1:0] A;
  (* force_downto *) input [S_WIDTH-1:0] S;
  (* force_downto *) output [WIDTH-1:0] Y;
  parameter [(WIDTH << S_WIDTH)-1:0] _TECHMAP_CONSTMSK_A_ = 0;
  genvar i;
  generate
  // A table of constants is logic, of which LUTs hold more.
  if (S_WIDTH < 2 || S_WIDTH > 4 || WIDTH < 4 || &_TECHMAP_CONSTMSK_A_) begin
    wire _TECHMAP_FAIL_ = 1;
  end else begin
    for (i = 0; i < WIDTH; i = i + 1) begin : bit_
      wire [15:0] d;
      genvar j;
      for (j = 0; j < (1 << S_WIDTH); j = j + 1) assign d[j] = A[j * WIDTH + i];
      if (S_WIDTH == 3 && &_TECHMAP_CONSTMSK_A_[8*WIDTH-1:5*WIDTH]) begin
        wire four;
        \$__mux4 m (.D(d[3:0]), .S(S[1:0]), .Y(four));
        // C ? B : A
        LUT4 #(.INIT(16'hCACA)) fifth (.A(four), .B(d[4]), .C(S[2]), .D(1'b0), .Z(Y[i]));
      end else if (S_WIDTH == 3 && &_TECHMAP_CONSTMSK_A_[3*WIDTH-1:0]) begin
        wire four;
        \$__mux4 m (.D(d[7:4]), .S(S[1:0]), .Y(four));
        LUT4 #(.INIT(16'hCACA)) fifth (.A(d[3]), .B(four), .C(S[2]), .D(1'b0), .Z(Y[i]));
      end else if (S_WIDTH == 2) \$__mux4 m (.D(d[3:0]), .S(S[1:0]), .Y(Y[i]));
      else if (S_WIDTH == 3) \$__mux8 m (.D(d[7:0]), .S(S[2:0]), .Y(Y[i]));
      else begin
        wire low, high;
        \$__mux8 m0 (.D(d[7:0]), .S(S[2:0]), .Y(low));
        \$__mux8 m1 (.D(d[15:8]), .S(S[2:0]), .Y(high));
        L6MUX21 m (.D0(low), .D1(high), .SD(S[3]), .Z(Y[i]));
      end
    end
  end
  endgenerate
endmodule

(* techmap_celltype = "$__mux4" *)
module mux4 (D, S, Y);
  input [3:0] D; input [1:0] S; output Y;
  wire low, high;
  // C ? B : A
  LUT4 #(.INIT(16'hCACA)) l0 (.A(D[0]), .B(D[1]), .C(S[0]), .D(1'b0), .Z(low));
  LUT4 #(.INIT(16'hCACA)) l1 (.A(D[2]), .B(D[3]), .C(S[0]), .D(1'b0), .Z(high));
  PFUMX m (.ALUT(high), .BLUT(low), .C0(S[1]), .Z(Y));
endmodule

(* techmap_celltype = "$__mux8" *)
module mux8 (D, S, Y);
  input [7:0] D; input [2:0] S; output Y;
  wire low, high;
  \$__mux4 m0 (.D(D[3:0]), .S(S[1:0]), .Y(low));
  \$__mux4 m1 (.D(D[7:4]), .S(S[1:0]), .Y(high));
  L6MUX21 m (.D0(low), .D1(high), .SD(S[2]), .Z(Y));
endmodule

// Sums stay chains of carries: a tree of full adders takes twice their LUTs
(* techmap_celltype = "$add" *)
module carry_add (A, B, Y);
  parameter A_SIGNED = 0; parameter B_SIGNED = 0;
  parameter A_WIDTH = 1; parameter B_WIDTH = 1; parameter Y_WIDTH = 1;
  (* force_downto *) input [A_WIDTH-1:0] A;
  (* force_downto *) input [B_WIDTH-1:0] B;
  (* force_downto *) output [Y_WIDTH-1:0] Y;
  wire [Y_WIDTH-1:0] x, co;
  \$alu #(.A_SIGNED(A_SIGNED), .B_SIGNED(B_SIGNED), .A_WIDTH(A_WIDTH), .B_WIDTH(B_WIDTH), .Y_WIDTH(Y_WIDTH))
    _TECHMAP_REPLACE_ (.A(A), .B(B), .CI(1'b0), .BI(1'b0), .X(x), .Y(Y), .CO(co));
endmodule
